"""`dit-sparse lm`: an answer of a language model, sparse, and how it compares with dense."""

from __future__ import annotations

from typing import Annotated

import typer

from dit_sparse.commands.options import (
    ATTENTION,
    MODEL,
    OUTPUT,
    Debug,
    Device,
    Dtype,
    Json,
    Profile,
    Set,
    option,
)

TEXT = "Text"


def lm(
    prompt: Annotated[
        str | None,
        typer.Argument(help="What the answer follows; - reads it from standard input."),
    ] = None,
    model: Annotated[
        str, option(MODEL, "[b]needle[/b] (built in, default), a hub id or a model folder.")
    ] = "needle",
    device: Device = "auto",
    dtype: Dtype = "auto",
    method: Annotated[
        str | None,
        option(ATTENTION, "A method for text (default: xattention from 2,000 tokens, else dense)."),
    ] = None,
    keep: Annotated[float | None, option(ATTENTION, "Budget, of a method that has one.")] = None,
    profile: Profile = None,
    set: Set = None,
    task: Annotated[
        str | None,
        option(TEXT, "Instead of PROMPT a text of needle's: recall, passkey or roads."),
    ] = None,
    length: Annotated[int | None, option(TEXT, "Tokens of that text (default 4096).")] = None,
    seed: Annotated[int, option(TEXT, "Same seed, same text (default 0).")] = 0,
    tokens: Annotated[int, option(TEXT, "Tokens of the answer at most (default 32).")] = 32,
    compare: Annotated[
        bool, option(OUTPUT, "Also answer densely, and compare.", "--compare")
    ] = False,
    quiet: Annotated[bool, option(OUTPUT, "Print the answer alone.", "--quiet")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a prompt greedily, with a sparse method, and report time, density and agreement.

    dit-sparse lm --task passkey --length 8192 --method xattention --compare
    """
    given = dict(locals())
    from dit_sparse.commands.lm_answer import Order

    Order(**given).carry_out()
