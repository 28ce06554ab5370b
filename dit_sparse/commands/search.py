"""`dit-sparse search`: a method for every head, found on the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL, BUDGET, VIDEOS = "Model", "Budget", "On what"
SEARCH, SAMPLING, OUTPUT = "Search", "Sampling", "Output"


def _option(panel: str, help: str, *names: str, **extra: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=False, **extra)


def search(
    model: Annotated[
        str, _option(MODEL, "[b]shapes[/b] (built in, default), a hub id or a pipeline folder.")
    ] = "shapes",
    device: Annotated[str, _option(MODEL, "auto (default), cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, _option(MODEL, "As in `generate`.")] = "auto",
    compile: Annotated[bool, _option(MODEL, "Compile the transformer.", "--compile")] = False,
    budget_error: Annotated[
        float | None,
        _option(BUDGET, "Largest relative error of attention outputs, e.g. .1 (default)."),
    ] = None,
    budget_psnr: Annotated[
        float | None, _option(BUDGET, "Least PSNR against dense in dB, tried on real videos.")
    ] = None,
    speedup: Annotated[
        float | None, _option(BUDGET, "How many times faster than dense a generation should be.")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        _option(
            SEARCH,
            'What a head may get, e.g. "pisa keep=.25"; repeatable. Dense is always one.',
            metavar="TEXT",
        ),
    ] = None,
    parts: Annotated[int, _option(SEARCH, "Parts of the steps with a table each.")] = 3,
    sensitivity: Annotated[
        bool,
        _option(
            SEARCH,
            "Weigh errors by what they do to a video (default), or all alike.",
            "--sensitivity/--alike",
        ),
    ] = True,
    rule: Annotated[
        str, _option(SEARCH, "best (default), or paper: the greedy rule of Sparse-vDiT.")
    ] = "best",
    eps: Annotated[float | None, _option(SEARCH, "Of the paper's rule (default 1).")] = None,
    penalty: Annotated[
        float | None, _option(SEARCH, "Its lambda, the weight of the density (default .5).")
    ] = None,
    prompts: Annotated[
        Path | None, _option(VIDEOS, "Prompts from a text file, one a line (default: built in).")
    ] = None,
    prompt: Annotated[
        list[str] | None, _option(VIDEOS, "A prompt; repeatable.", metavar="TEXT")
    ] = None,
    count: Annotated[
        int | None, _option(VIDEOS, "So many of the prompts (default 2, of a file all).")
    ] = None,
    checks: Annotated[
        int, _option(VIDEOS, "On so many of them a found profile is tried (default 2).")
    ] = 2,
    seed: Annotated[int, _option(VIDEOS, "The first seed (default 0).")] = 0,
    steps: Annotated[int | None, _option(SAMPLING, "Denoising steps.")] = None,
    frames: Annotated[int | None, _option(SAMPLING, "Video frames.")] = None,
    height: Annotated[int | None, _option(SAMPLING, "Height in pixels.")] = None,
    width: Annotated[int | None, _option(SAMPLING, "Width in pixels.")] = None,
    guidance: Annotated[float | None, _option(SAMPLING, "Guidance scale; 1 = none.")] = None,
    negative: Annotated[str | None, _option(SAMPLING, "What not to show.")] = None,
    out: Annotated[Path | None, _option(OUTPUT, "The profile (default MODEL--mixed.toml).")] = None,
    quiet: Annotated[
        bool, _option(OUTPUT, "Print nothing but the names of the files.", "--quiet")
    ] = False,
    json: Annotated[bool, _option(OUTPUT, "Print JSON instead of the table.", "--json")] = False,
    debug: Annotated[
        bool, _option(OUTPUT, "Show tracebacks and all library warnings.", "--debug")
    ] = False,
) -> None:
    """Find the method and budget of every head, by what each loses and what it costs here.

    Writes a profile for `generate --profile`, what was learned beside it (.json), and what was
    measured (.jsonl): stopped at any moment, the same command goes on where it was.
    """
    given = dict(locals())
    from dit_sparse.commands.searching import Order

    Order(**given).carry_out()
