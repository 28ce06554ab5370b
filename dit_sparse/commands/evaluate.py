"""`dit-sparse eval`: how good methods are, against dense attention and with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dit_sparse.commands.options import (
    MODEL,
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
    Negative,
    Prompt,
    Steps,
    Width,
    option,
)
from dit_sparse.errors import ArgumentError

CASES, MEASURES = "What is compared", "Measures"


def evaluate(
    model: Annotated[
        str | None,
        option(
            MODEL,
            "[b]shapes[/b] (built in, default), a hub id or a pipeline folder; for --task needle "
            "[b]needle[/b], or the folder of a model trained as it was.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile: Compile = False,
    task: Annotated[
        str | None,
        option(
            CASES,
            "[b]needle[/b]: answers of the built-in language model from long texts, instead of "
            "videos.",
        ),
    ] = None,
    method: Annotated[
        str | None, option(CASES, "Comma-separated; default: all that have a budget.")
    ] = None,
    keep: Annotated[
        str | None, option(CASES, "Budgets, comma-separated; default .125,.25,.5.")
    ] = None,
    density: Annotated[
        str | None,
        option(CASES, "Instead of --keep: move each budget until so much is measured, e.g. .25."),
    ] = None,
    set: Annotated[
        list[str] | None,
        option(CASES, "Any parameter of the one method; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    case: Annotated[
        list[str] | None,
        option(
            CASES,
            'A method with its own settings, e.g. "pisa order=0"; repeatable. Without a keep of '
            "its own it takes all budgets.",
            metavar="TEXT",
        ),
    ] = None,
    profile: Annotated[
        list[str] | None, option(CASES, "A profile as it is: a .toml file or a shipped name.")
    ] = None,
    cases: Annotated[
        Path | None, option(CASES, "Labelled cases, and claims to test, from a .toml file.")
    ] = None,
    dense_steps: Annotated[
        float | None,
        option(
            CASES,
            "First dense steps of all cases: a count, or a share of the steps below 1; dense "
            "layers stay each case's own.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        option(VIDEOS, "Prompts from a text file, one a line (default: built-in ones)."),
    ] = None,
    prompt: Prompt = None,
    count: Annotated[
        int | None, option(VIDEOS, "So many of the prompts (default 8, of a file all).")
    ] = None,
    length: Annotated[
        str | None,
        option(VIDEOS, "Tokens of the texts of --task needle (default 4096,8192,16384)."),
    ] = None,
    seeds: Annotated[int, option(VIDEOS, "Seeds of each prompt (default 1).")] = 1,
    seed: FirstSeed = 0,
    steps: Steps = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    guidance: Guidance = None,
    negative: Negative = None,
    probes: Annotated[
        int, option(MEASURES, "Videos on which attention is measured (default 2; 0 = none).")
    ] = 2,
    rows: Annotated[
        int, option(MEASURES, "Query rows of each attention call for that (default 64).")
    ] = 64,
    seconds: Annotated[
        float, option(MEASURES, "Start nothing new after so many seconds; run again to go on.")
    ] = float("inf"),
    out: Annotated[
        Path | None,
        option(OUTPUT, "Folder of the results (default eval-MODEL); what is there is kept."),
    ] = None,
    videos: Annotated[
        bool, option(OUTPUT, "Keep all videos there, for FVD and VBench.", "--videos")
    ] = False,
    show: Annotated[
        Path | None, option(OUTPUT, "Print the tables of a finished eval.json, and stop.")
    ] = None,
    quiet: Files = False,
    json: Json = False,
    markdown: Annotated[bool, option(OUTPUT, "Print Markdown tables.", "--markdown")] = False,
    debug: Debug = False,
) -> None:
    """Measure how near methods come to dense attention, on many prompts and seeds.

    Writes eval.json, eval.md and eval.png (likeness against time). Stopped at any moment, the same
    command goes on where it was; other settings in the same folder are kept apart.
    """
    given = dict(locals())
    if task is not None:
        from dit_sparse.commands.lm_evaluation import Order as Texts

        Texts.of(given).carry_out()
        return
    if length is not None:
        raise ArgumentError(f"--length {length} is of texts: it needs --task needle")
    from dit_sparse.commands.evaluation import Order
    from dit_sparse.commands.model import BUILT_IN

    del given["task"], given["length"]
    given["model"] = model or BUILT_IN
    Order(**given).carry_out()
