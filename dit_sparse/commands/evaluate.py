"""`dit-sparse eval`: how good methods are, against dense attention and with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL, CASES, VIDEOS = "Model", "What is compared", "On what"
SAMPLING, MEASURES, OUTPUT = "Sampling", "Measures", "Output"


def _option(panel: str, help: str, *names: str, **extra: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=False, **extra)


def evaluate(
    model: Annotated[
        str, _option(MODEL, "[b]shapes[/b] (built in, default), a hub id or a pipeline folder.")
    ] = "shapes",
    device: Annotated[str, _option(MODEL, "auto (default), cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, _option(MODEL, "As in `generate`.")] = "auto",
    compile: Annotated[bool, _option(MODEL, "Compile the transformer.", "--compile")] = False,
    method: Annotated[
        str | None, _option(CASES, "Comma-separated; default: all that have a budget.")
    ] = None,
    keep: Annotated[
        str | None, _option(CASES, "Budgets, comma-separated; default .125,.25,.5.")
    ] = None,
    density: Annotated[
        str | None,
        _option(CASES, "Instead of --keep: move each budget until so much is measured, e.g. .25."),
    ] = None,
    set: Annotated[
        list[str] | None,
        _option(CASES, "Any parameter of the one method; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    case: Annotated[
        list[str] | None,
        _option(
            CASES,
            'A method with its own settings, e.g. "pisa order=0"; repeatable. Without a keep of '
            "its own it takes all budgets.",
            metavar="TEXT",
        ),
    ] = None,
    profile: Annotated[
        list[str] | None, _option(CASES, "A profile as it is: a .toml file or a shipped name.")
    ] = None,
    cases: Annotated[
        Path | None, _option(CASES, "Labelled cases, and claims to test, from a .toml file.")
    ] = None,
    dense_steps: Annotated[
        float | None,
        _option(
            CASES,
            "First dense steps of all cases: a count, or a share of the steps below 1; dense "
            "layers stay each case's own.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        _option(VIDEOS, "Prompts from a text file, one a line (default: built-in ones)."),
    ] = None,
    prompt: Annotated[
        list[str] | None, _option(VIDEOS, "A prompt; repeatable.", metavar="TEXT")
    ] = None,
    count: Annotated[
        int | None, _option(VIDEOS, "So many of the prompts (default 8, of a file all).")
    ] = None,
    seeds: Annotated[int, _option(VIDEOS, "Seeds of each prompt (default 1).")] = 1,
    seed: Annotated[int, _option(VIDEOS, "The first seed (default 0).")] = 0,
    steps: Annotated[int | None, _option(SAMPLING, "Denoising steps.")] = None,
    frames: Annotated[int | None, _option(SAMPLING, "Video frames.")] = None,
    height: Annotated[int | None, _option(SAMPLING, "Height in pixels.")] = None,
    width: Annotated[int | None, _option(SAMPLING, "Width in pixels.")] = None,
    guidance: Annotated[float | None, _option(SAMPLING, "Guidance scale; 1 = none.")] = None,
    negative: Annotated[str | None, _option(SAMPLING, "What not to show.")] = None,
    probes: Annotated[
        int, _option(MEASURES, "Videos on which attention is measured (default 2; 0 = none).")
    ] = 2,
    rows: Annotated[
        int, _option(MEASURES, "Query rows of each attention call for that (default 64).")
    ] = 64,
    seconds: Annotated[
        float, _option(MEASURES, "Start nothing new after so many seconds; run again to go on.")
    ] = float("inf"),
    out: Annotated[
        Path | None,
        _option(OUTPUT, "Folder of the results (default eval-MODEL); what is there is kept."),
    ] = None,
    videos: Annotated[
        bool, _option(OUTPUT, "Keep all videos there, for FVD and VBench.", "--videos")
    ] = False,
    show: Annotated[
        Path | None, _option(OUTPUT, "Print the tables of a finished eval.json, and stop.")
    ] = None,
    quiet: Annotated[
        bool, _option(OUTPUT, "Print nothing but the names of the files.", "--quiet")
    ] = False,
    json: Annotated[bool, _option(OUTPUT, "Print JSON instead of the table.", "--json")] = False,
    markdown: Annotated[bool, _option(OUTPUT, "Print Markdown tables.", "--markdown")] = False,
    debug: Annotated[
        bool, _option(OUTPUT, "Show tracebacks and all library warnings.", "--debug")
    ] = False,
) -> None:
    """Measure how near methods come to dense attention, on many prompts and seeds.

    Writes eval.json, eval.md and eval.png (likeness against time). Stopped at any moment, the same
    command goes on where it was; other settings in the same folder are kept apart.
    """
    given = dict(locals())
    from dit_sparse.commands.evaluation import Order

    Order(**given).carry_out()
