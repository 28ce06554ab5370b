"""`dit-sparse search`: a method for every head, found on the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dit_sparse.commands.options import (
    OUTPUT,
    VIDEOS,
    Compile,
    Debug,
    Device,
    Dtype,
    Files,
    FirstSeed,
    Frames,
    Guidance,
    Height,
    Json,
    Model,
    Negative,
    Prompt,
    Steps,
    Width,
    option,
)

BUDGET, SEARCH = "Budget", "Search"


def search(
    model: Model = "shapes",
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile: Compile = False,
    budget_error: Annotated[
        float | None,
        option(BUDGET, "Largest relative error of attention outputs, e.g. .1 (default)."),
    ] = None,
    budget_psnr: Annotated[
        float | None, option(BUDGET, "Least PSNR against dense in dB, tried on real videos.")
    ] = None,
    speedup: Annotated[
        float | None, option(BUDGET, "How many times faster than dense a generation should be.")
    ] = None,
    candidate: Annotated[
        list[str] | None,
        option(
            SEARCH,
            'What a head may get, e.g. "pisa keep=.25"; repeatable. Dense is always one.',
            metavar="TEXT",
        ),
    ] = None,
    parts: Annotated[int, option(SEARCH, "Parts of the steps with a table each.")] = 4,
    dense_start: Annotated[
        bool,
        option(
            SEARCH,
            "Hold the first of several parts dense (default), or search there, too.",
            "--dense-start/--sparse-start",
        ),
    ] = True,
    sensitivity: Annotated[
        bool,
        option(
            SEARCH,
            "Weigh errors by what they do to a video (default), or all alike.",
            "--sensitivity/--alike",
        ),
    ] = True,
    rule: Annotated[
        str, option(SEARCH, "best (default), or paper: the greedy rule of Sparse-vDiT.")
    ] = "best",
    eps: Annotated[float | None, option(SEARCH, "Of the paper's rule (default 1).")] = None,
    penalty: Annotated[
        float | None, option(SEARCH, "Its lambda, the weight of the density (default .5).")
    ] = None,
    prompts: Annotated[
        Path | None, option(VIDEOS, "Prompts from a text file, one a line (default: built in).")
    ] = None,
    prompt: Prompt = None,
    count: Annotated[
        int | None, option(VIDEOS, "So many of the prompts (default 1, of a file all).")
    ] = None,
    checks: Annotated[
        int, option(VIDEOS, "On so many of them, at most, a found profile is tried (default 2).")
    ] = 2,
    seed: FirstSeed = 0,
    steps: Steps = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    guidance: Guidance = None,
    negative: Negative = None,
    out: Annotated[
        Path | None,
        option(OUTPUT, "The profile (default MODEL--mixed.toml, or the next name that is free)."),
    ] = None,
    quiet: Files = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the method and budget of every head, by what each loses and what it costs here.

    Writes a profile for `generate --profile`, what was learned beside it (.json), and what was
    measured (.jsonl): stopped at any moment, the same command goes on where it was.
    """
    given = dict(locals())
    from dit_sparse.commands.searching import Order

    Order(**given).carry_out()
