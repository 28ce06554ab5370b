"""`dit-sparse generate`: a prompt becomes a video or an image, dense or sparse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dit_sparse.commands.request import Request

MODEL, ATTENTION, SAMPLING, OUTPUT = "Model", "Attention", "Sampling", "Output"


def _option(panel: str, help: str, *names: str, **extra: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=False, **extra)


def _switch(panel: str, name: str, help: str) -> Any:
    # named, for else there is a --no-... of each
    return _option(panel, help, name)


def generate(
    prompt: Annotated[str, typer.Argument(help="What to show.", show_default=False)] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Instead of PROMPT: a text file, one prompt per line. --out is a folder then; "
            "what its manifest calls done is left alone.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, _option(MODEL, "[b]shapes[/b] (built in, default), a hub id or a pipeline folder.")
    ] = "shapes",
    device: Annotated[str, _option(MODEL, "auto (default), cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        str,
        _option(
            MODEL,
            "float32, bfloat16 or float16. Default: bfloat16 on a GPU, float32 on a CPU and for "
            "shapes.",
        ),
    ] = "auto",
    compile: Annotated[
        bool,
        _switch(
            MODEL, "--compile", "Compile the transformer: a slow first step, then faster ones."
        ),
    ] = False,
    method: Annotated[
        str | None,
        _option(
            ATTENTION, "See `dit-sparse methods`. Default: pisa from 2,000 tokens, dense below."
        ),
    ] = None,
    keep: Annotated[
        float | None, _option(ATTENTION, "Share of exact attention, above 0 and at most 1.")
    ] = None,
    profile: Annotated[
        str | None, _option(ATTENTION, "Settings from a profile: a .toml file or a shipped name.")
    ] = None,
    set: Annotated[
        list[str] | None,
        _option(ATTENTION, "Any parameter of the method; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    quant: Annotated[
        str, _option(ATTENTION, "fp8: products of 8-bit numbers, where the GPU has them.")
    ] = "none",
    guard: Annotated[
        float | None,
        _option(
            ATTENTION, "Largest relative error of a layer, e.g. 0.05; one above it goes dense."
        ),
    ] = None,
    steps: Annotated[int | None, _option(SAMPLING, "Denoising steps.")] = None,
    frames: Annotated[int | None, _option(SAMPLING, "Video frames.")] = None,
    height: Annotated[int | None, _option(SAMPLING, "Height in pixels.")] = None,
    width: Annotated[int | None, _option(SAMPLING, "Width in pixels.")] = None,
    guidance: Annotated[float | None, _option(SAMPLING, "Guidance scale; 1 = none.")] = None,
    negative: Annotated[str | None, _option(SAMPLING, "What not to show.")] = None,
    image: Annotated[
        Path | None,
        _option(SAMPLING, "Start from this PNG or JPEG: image-to-video, image-to-image, editing."),
    ] = None,
    seed: Annotated[int, _option(SAMPLING, "Same seed, same video (default 0).")] = 0,
    fps: Annotated[float | None, _option(OUTPUT, "Frames per second of the file.")] = None,
    out: Annotated[
        Path | None,
        _option(OUTPUT, "A .mp4, .gif, .webp or .png file, or a folder. Default: named by prompt."),
    ] = None,
    compare: Annotated[
        bool,
        _switch(OUTPUT, "--compare", "Also run dense: side-by-side file, PSNR, SSIM, both times."),
    ] = False,
    quiet: Annotated[
        bool, _switch(OUTPUT, "--quiet", "Print nothing but the names of the files.")
    ] = False,
    json: Annotated[
        bool, _switch(OUTPUT, "--json", "Print one JSON object instead of the table.")
    ] = False,
    debug: Annotated[
        bool, _switch(OUTPUT, "--debug", "Show tracebacks and all library warnings.")
    ] = False,
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
