"""The command line `dit-sparse`: one file per command in `dit_sparse/commands/`.

Exit codes: 0 done, 2 wrong arguments or unsupported model, 1 failed while running, 130 stopped by
Ctrl-C (143 by SIGTERM). A failure is one line on stderr; `--debug` adds the traceback.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dit_sparse.commands import (
    bench,
    bench_lm,
    demo,
    evaluate,
    generate,
    inspect,
    lm,
    methods,
    models,
    search,
)
from dit_sparse.errors import DitSparseError

DONE, FAILED, WRONG, STOPPED, TERMINATED = 0, 1, 2, 130, 143


class Terminated(BaseException):
    """SIGTERM arrived: unwind, so that part files are removed."""


class OneLine(TyperGroup):
    """Commands whose every failure is one line on stderr and an exit code."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        options.update(standalone_mode=False)
        with terminable():
            code, line = self._run(args, rest, options)
        if line:
            print(line, file=sys.stderr)
        sys.exit(code)

    def _run(self, args: Sequence[str], rest: Any, options: Any) -> tuple[int, str]:
        """Run the command; returns its exit code and the line that explains it."""
        try:
            code = super().main(args, *rest, **options)
            code = code if isinstance(code, int) else DONE
            return code, "stopped" if code == STOPPED else ""
        except (KeyboardInterrupt, typer.Abort):
            return STOPPED, "stopped"
        except Terminated:
            return TERMINATED, "stopped"
        except Exception as error:
            if "--debug" in args:
                traceback.print_exc()
            # typer's own errors know their text and code; they have no public base class
            told = getattr(error, "format_message", None)
            text = told() if told else said(error)
            if told and not text:
                # no command was named, and the help shown instead
                return WRONG, ""
            wrong = isinstance(error, DitSparseError) or getattr(error, "exit_code", 0) == WRONG
            return WRONG if wrong else FAILED, f"error: {one_line(text) or type(error).__name__}"


def said(error: Exception) -> str:
    """Return what an error says; one of the system: which file, then why."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def one_line(text: str, limit: int = 400) -> str:
    """Return a message without its line breaks, cut at `limit` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit].rstrip()} ... (--debug shows all)"


@contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception while a command runs."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


app = typer.Typer(
    cls=OneLine,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"dit-sparse {version('dit-sparse')}")
        except PackageNotFoundError:  # a checkout that was never installed
            import dit_sparse

            print(f"dit-sparse {dit_sparse.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Sparse attention for video and image diffusion transformers."""


app.command("generate")(generate.generate)
app.command("methods")(methods.methods)
app.command("models")(models.models)
app.command("eval")(evaluate.evaluate)
app.command("demo")(demo.demo)
app.command("inspect")(inspect.inspect)
app.command("lm")(lm.lm)
app.command("search")(search.search)
bench.app.command("lm")(bench_lm.lm)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command line."""
    app(prog_name="dit-sparse")


if __name__ == "__main__":
    main()
