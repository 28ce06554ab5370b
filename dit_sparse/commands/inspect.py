"""`dit-sparse inspect`: pictures of attention, and of what a method keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL, ATTENTION, WHERE, SAMPLING = "Model", "Attention", "Where to look", "Sampling"
OUTPUT = "Output"


def _option(panel: str, help: str, *names: str, **extra: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=False, **extra)


def inspect(
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to show (default: a built-in prompt).", show_default=False),
    ] = None,
    model: Annotated[
        str, _option(MODEL, "[b]shapes[/b] (built in, default), a hub id or a pipeline folder.")
    ] = "shapes",
    device: Annotated[str, _option(MODEL, "auto (default), cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, _option(MODEL, "As in `generate`.")] = "auto",
    method: Annotated[str | None, _option(ATTENTION, "A sparse method (default pisa).")] = None,
    keep: Annotated[float | None, _option(ATTENTION, "Share of exact attention.")] = None,
    profile: Annotated[
        str | None, _option(ATTENTION, "Settings from a profile: a .toml file or a shipped name.")
    ] = None,
    set: Annotated[
        list[str] | None,
        _option(ATTENTION, "Any parameter of the method; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    everywhere: Annotated[
        bool,
        _option(ATTENTION, "Sparse in all layers and steps, ignoring schedules.", "--everywhere"),
    ] = False,
    layer: Annotated[
        str | None, _option(WHERE, "Layers, e.g. 0,3 or all (default: 4 spread evenly).")
    ] = None,
    head: Annotated[
        str | None, _option(WHERE, "Heads, e.g. 0,3 or all (default: the first 4).")
    ] = None,
    step: Annotated[
        str | None, _option(WHERE, "Steps from 0, e.g. 6,11 or all (default: the middle one).")
    ] = None,
    patch: Annotated[
        list[str] | None,
        _option(
            WHERE,
            "A patch whose attention is drawn on the video, in tokens; repeatable. Default: one "
            "in the centre, one towards a corner.",
            metavar="FRAME,ROW,COLUMN",
        ),
    ] = None,
    steps: Annotated[int | None, _option(SAMPLING, "Denoising steps.")] = None,
    frames: Annotated[int | None, _option(SAMPLING, "Video frames.")] = None,
    height: Annotated[int | None, _option(SAMPLING, "Height in pixels.")] = None,
    width: Annotated[int | None, _option(SAMPLING, "Width in pixels.")] = None,
    guidance: Annotated[float | None, _option(SAMPLING, "Guidance scale; 1 = none.")] = None,
    seed: Annotated[int, _option(SAMPLING, "Same seed, same video (default 0).")] = 0,
    out: Annotated[
        Path | None, _option(OUTPUT, "Folder of the pictures (default inspect-METHOD).")
    ] = None,
    quiet: Annotated[
        bool, _option(OUTPUT, "Print nothing but the name of the page.", "--quiet")
    ] = False,
    json: Annotated[
        bool, _option(OUTPUT, "Print the numbers of all heads as JSON.", "--json")
    ] = False,
    debug: Annotated[
        bool, _option(OUTPUT, "Show tracebacks and all library warnings.", "--debug")
    ] = False,
) -> None:
    """Draw what each head looks at and what a method keeps of it: PNG files and one HTML page.

    Maps are in the method's own blocks and frame by frame; what a patch looks at is drawn on the
    video. The page is one file and needs no network.
    """
    given = dict(locals())
    from dit_sparse.commands.inspecting import Order

    Order(**given).carry_out()
