"""`dit-sparse inspect`: pictures of attention, and of what a method keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit_sparse.commands.options import (
    ATTENTION,
    OUTPUT,
    Debug,
    Device,
    Dtype,
    Frames,
    Guidance,
    Height,
    Model,
    Profile,
    Seed,
    Set,
    Steps,
    Width,
    option,
)

WHERE = "Where to look"


def inspect(
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to show (default: a built-in prompt).", show_default=False),
    ] = None,
    model: Model = "shapes",
    device: Device = "auto",
    dtype: Dtype = "auto",
    method: Annotated[str | None, option(ATTENTION, "A sparse method (default pisa).")] = None,
    keep: Annotated[float | None, option(ATTENTION, "Share of exact attention.")] = None,
    profile: Profile = None,
    set: Set = None,
    everywhere: Annotated[
        bool,
        option(ATTENTION, "Sparse in all layers and steps, ignoring schedules.", "--everywhere"),
    ] = False,
    layer: Annotated[
        str | None, option(WHERE, "Layers, e.g. 0,3 or all (default: 4 spread evenly).")
    ] = None,
    head: Annotated[
        str | None, option(WHERE, "Heads, e.g. 0,3 or all (default: the first 4).")
    ] = None,
    step: Annotated[
        str | None, option(WHERE, "Steps from 0, e.g. 6,11 or all (default: the middle one).")
    ] = None,
    patch: Annotated[
        list[str] | None,
        option(
            WHERE,
            "A patch whose attention is drawn on the video, in tokens; repeatable. Default: one "
            "in the centre, one towards a corner.",
            metavar="FRAME,ROW,COLUMN",
        ),
    ] = None,
    steps: Steps = None,
    frames: Frames = None,
    height: Height = None,
    width: Width = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, option(OUTPUT, "Folder of the pictures (default inspect-METHOD).")
    ] = None,
    quiet: Annotated[
        bool, option(OUTPUT, "Print nothing but the name of the page.", "--quiet")
    ] = False,
    json: Annotated[
        bool, option(OUTPUT, "Print the numbers of all heads as JSON.", "--json")
    ] = False,
    debug: Debug = False,
) -> None:
    """Draw what each head looks at and what a method keeps of it: PNG files and one HTML page.

    Maps are in the method's own blocks and frame by frame; what a patch looks at is drawn on the
    video. The page is one file and needs no network.
    """
    given = dict(locals())
    from dit_sparse.commands.inspecting import Order

    Order(**given).carry_out()
