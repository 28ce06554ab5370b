"""What the user sees: progress and notes on stderr, the result on stdout."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table


class Screen:
    """Lines, a bar and one table for people; one JSON object or file names for programs."""

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.out = Console(highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say in one line what the user should know even when all goes on."""
        self.err.print(f"[yellow]warning:[/yellow] {_plain(text)}")

    def say(self, text: str) -> None:
        """Say in one line what goes on, unless --quiet."""
        if not self.quiet:
            self.err.print(_plain(text), style="dim")

    @contextmanager
    def steps(self, label: str) -> Iterator[Bar]:
        """Show the denoising steps of one run."""
        bar = Bar(self, label)
        try:
            yield bar
        finally:
            bar.close()

    def result(self, data: dict[str, Any], rows: Sequence[tuple[str, str]], files: list) -> None:
        """Print the result in the form that was asked for, once."""
        if self.as_json:
            print(json.dumps(data, ensure_ascii=False, allow_nan=False))
        elif self.quiet:
            print("\n".join(map(str, files)))
        else:
            table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
            table.add_column(style="bold", no_wrap=True)
            table.add_column(overflow="fold")
            for name, value in rows:
                table.add_row(name, _plain(value))
            self.out.print(table)


class Bar:
    """A progress bar on a terminal, about five plain lines elsewhere."""

    def __init__(self, screen: Screen, label: str) -> None:
        self.screen, self.label = screen, label
        self.progress: Progress | None = None
        self.task: Any = None
        if screen.err.is_terminal and not screen.quiet:
            self.progress = Progress(
                TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"), console=screen.err,
            )  # fmt: skip
            self.progress.start()
            self.task = self.progress.add_task(label, total=None, note="")

    def show(self, step: int, steps: int, note: str) -> None:
        """Report that `step` of `steps` is done."""
        if self.progress is not None:
            self.progress.update(self.task, completed=step, total=steps, note=_plain(note))
        elif step == 1 or step * 4 // steps > (step - 1) * 4 // steps:
            self.screen.say(f"{self.label}: step {step}/{steps}  {note}")

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


@contextmanager
def hushed(debug: bool) -> Iterator[None]:
    """Keep the libraries' own warnings and bars off the screen, unless debugging."""
    if debug:
        yield
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        for library in (diffusers_logging, transformers_logging):
            library.set_verbosity_error()
            library.disable_progress_bar()
        for name in ("torch", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield


def _plain(text: str) -> str:
    """Escape what rich would read as markup: prompts and paths are not markup."""
    from rich.markup import escape

    return escape(text)
