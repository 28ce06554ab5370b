"""`dit-sparse generate`: a prompt becomes a video or an image, dense or sparse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit_sparse.commands.options import (
    ATTENTION,
    MODEL,
    OUTPUT,
    SAMPLING,
    Debug,
    Device,
    Files,
    Frames,
    Guidance,
    Height,
    Model,
    Negative,
    Profile,
    Seed,
    Set,
    Steps,
    Width,
    option,
)
from dit_sparse.commands.request import Request


def generate(
    prompt: Annotated[str, typer.Argument(help="What to show.", show_default=False)] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Instead of PROMPT: a text file, one prompt per line. --out is a folder then, "
            "made if need be; what its manifest calls done is left alone.",
            show_default=False,
        ),
    ] = None,
    model: Model = "shapes",
    device: Device = "auto",
    dtype: Annotated[
        str,
        option(
            MODEL,
            "float32, bfloat16 or float16. Default: bfloat16 on a GPU, float32 on a CPU and for "
            "shapes.",
        ),
    ] = "auto",
    compile: Annotated[
        bool,
        option(MODEL, "Compile the transformer: a slow first step, then faster ones.", "--compile"),
    ] = False,
    method: Annotated[
        str | None,
        option(
            ATTENTION,
            "See `dit-sparse methods`. Default: what was found for the model, else pisa; dense "
            "below 2,000 tokens.",
        ),
    ] = None,
    keep: Annotated[
        float | None, option(ATTENTION, "Share of exact attention, above 0 and at most 1.")
    ] = None,
    profile: Profile = None,
    set: Set = None,
    quant: Annotated[
        str, option(ATTENTION, "fp8: products of 8-bit numbers, where the GPU has them.")
    ] = "none",
    guard: Annotated[
        float | None,
        option(ATTENTION, "Largest relative error of a layer, e.g. 0.05; one above it goes dense."),
    ] = None,
    steps: Steps = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    guidance: Guidance = None,
    negative: Negative = None,
    image: Annotated[
        Path | None,
        option(SAMPLING, "Start from this PNG or JPEG: image-to-video, image-to-image, editing."),
    ] = None,
    seed: Seed = 0,
    fps: Annotated[float | None, option(OUTPUT, "Frames per second of the file.")] = None,
    out: Annotated[
        Path | None,
        option(OUTPUT, "A .mp4, .gif, .webp or .png file, or a folder. Default: named by prompt."),
    ] = None,
    compare: Annotated[
        bool,
        option(OUTPUT, "Also run dense: side-by-side file, PSNR, SSIM, both times.", "--compare"),
    ] = False,
    quiet: Files = False,
    json: Annotated[
        bool, option(OUTPUT, "Print one JSON object instead of the table.", "--json")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make a video or an image of PROMPT, with sparse attention where it pays.

    The defaults of size, length, steps and guidance are those of the model. Started by torchrun,
    the processes share one generation, or the prompts of a file.
    """
    given = dict(locals())
    given["set"] = tuple(set or ())
    request = Request(**given)
    request.check()

    if request.prompts is not None:
        from dit_sparse.commands.many import run as run_many

        run_many(request, request.prompts)
    else:
        from dit_sparse.commands.job import run

        run(request)
