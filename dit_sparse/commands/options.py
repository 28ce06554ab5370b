"""Options that several commands have, each written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

# panels of --help that commands share
MODEL, ATTENTION, VIDEOS = "Model", "Attention", "On what"
SAMPLING, OUTPUT = "Sampling", "Output"


def option(panel: str, help: str, *names: str, **extra: Any) -> Any:
    """Return an option of a panel of --help.

    names: for a switch, for else there is a --no-... of each.
    """
    return typer.Option(*names, rich_help_panel=panel, help=help, show_default=False, **extra)


def given(shared: Callable[..., Any], **fixed: Any) -> Callable[[Callable], Callable]:
    """Make a command take the options of `shared` too; what that returns is its first argument.

    fixed: options that this command has not, and their values.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        own, more = (
            list(inspect.signature(of, eval_str=True).parameters.values())
            for of in (command, shared)
        )
        more = [p.replace(kind=p.KEYWORD_ONLY) for p in more if p.name not in fixed]

        @functools.wraps(command)
        def call(**options: Any) -> None:
            first = shared(**fixed, **{p.name: options.pop(p.name) for p in more})
            command(first, **options)

        whole = [*own[1:], *more]
        # typer reads both
        call.__signature__ = inspect.Signature(whole)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in whole}
        return call

    return add


Model = Annotated[
    str, option(MODEL, "[b]shapes[/b] (built in, default), a hub id or a pipeline folder.")
]
Device = Annotated[str, option(MODEL, "auto (default), cpu, cuda or cuda:N.")]
Dtype = Annotated[str, option(MODEL, "As in `generate`.")]
Compile = Annotated[bool, option(MODEL, "Compile the transformer.", "--compile")]
Profile = Annotated[
    str | None, option(ATTENTION, "Settings from a profile: a .toml file or a shipped name.")
]
Set = Annotated[
    list[str] | None,
    option(ATTENTION, "Any parameter of the method; repeatable.", metavar="KEY=VALUE"),
]
Steps = Annotated[int | None, option(SAMPLING, "Denoising steps.")]
Frames = Annotated[int | None, option(SAMPLING, "Video frames.")]
Height = Annotated[int | None, option(SAMPLING, "Height in pixels.")]
Width = Annotated[int | None, option(SAMPLING, "Width in pixels.")]
Guidance = Annotated[float | None, option(SAMPLING, "Guidance scale; 1 = none.")]
Negative = Annotated[str | None, option(SAMPLING, "What not to show.")]
Seed = Annotated[int, option(SAMPLING, "Same seed, same video (default 0).")]
Prompt = Annotated[list[str] | None, option(VIDEOS, "A prompt; repeatable.", metavar="TEXT")]
FirstSeed = Annotated[int, option(VIDEOS, "The first seed (default 0).")]
Files = Annotated[bool, option(OUTPUT, "Print nothing but the names of the files.", "--quiet")]
Json = Annotated[bool, option(OUTPUT, "Print JSON instead of the table.", "--json")]
Debug = Annotated[bool, option(OUTPUT, "Show tracebacks and all library warnings.", "--debug")]
