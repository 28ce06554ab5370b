"""From the arguments of `bench` to rows, files and a table; what its commands share."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from dit_sparse.commands.model import device_of
from dit_sparse.commands.request import DTYPES, writable
from dit_sparse.commands.screen import Screen, hushed
from dit_sparse.errors import ArgumentError

IMPLS = ("auto", "triton", "torch")
MOST_TOKENS = 1 << 22


class Case(Protocol):
    """Something to time: it knows the row that it would fill."""

    @property
    def row(self) -> Any: ...


@dataclass(frozen=True)
class Run:
    """How a benchmark is to run, whatever it times."""

    device: str = "auto"
    dtype: str = "auto"
    impl: str = "auto"
    seconds: float = 3600
    quick: bool = False
    out: Path | None = None
    plot: Path | None = None
    quiet: bool = False
    json: bool = False
    markdown: bool = False
    debug: bool = False

    def check(self) -> None:
        """Raise `ArgumentError` for the first argument that cannot work."""
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ArgumentError(f"--device {self.device} is not known; use auto, cpu or cuda")
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise ArgumentError(f"--dtype {self.dtype} is not known; use auto, {', '.join(DTYPES)}")
        if self.impl not in IMPLS:
            raise ArgumentError(f"--impl {self.impl} is not known; use {', '.join(IMPLS)}")
        if not self.seconds > 0:
            raise ArgumentError(f"--seconds {self.seconds:g} must be above 0")
        if self.out is not None and self.out.suffix.lower() != ".json":
            raise ArgumentError(f"--out {self.out}: use a file name that ends in .json")
        if self.plot is not None:
            from dit_sparse.bench.plot import check_plot

            check_plot(self.plot)
        for name, path in (("out", self.out), ("plot", self.plot)):
            if path is not None and not (path.parent.is_dir() and writable(path.parent)):
                raise ArgumentError(f"--{name} {path}: cannot write to the folder {path.parent}")
        device_of(self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether the run is on a GPU."""
        return device_of(self.device).startswith("cuda")

    def carry_out(
        self, kind: str, cases: list[Any], measure: Callable[..., Iterator[Any]], **options: Any
    ) -> None:
        """Time the cases with `measure`, write the files and show the result.

        options: further arguments of `measure`. Raises when an output of ours is wrong, or when
        nothing could be timed.
        """
        import torch

        from dit_sparse.bench import table
        from dit_sparse.bench.machine import Timer, facts, measure_limits
        from dit_sparse.bench.results import Result
        from dit_sparse.kernels import attention

        screen, device = Screen(self.quiet, self.json), torch.device(device_of(self.device))
        name = self.dtype if self.dtype != "auto" else "bfloat16" if self.on_gpu else "float32"
        dtype, timer = getattr(torch, DTYPES[name]), Timer(device, self.quick)
        if device.type == "cuda":
            # events and launches belong to the current device
            torch.cuda.set_device(device.index or 0)
        like = torch.empty(1, 1, 128, cases[0].row.shape.head_dim, device=device, dtype=dtype)
        # for blocks of 128; a row of another kernel says so
        chosen = attention.kernel(like, like, like, q_blocks=128, kv_blocks=128, impl=self.impl)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_calm(self.debug, kind == "step"))
            limits, clocks = measure_limits(timer, dtype)
            machine = {**facts(device), **clocks, "dtype": DTYPES[name]}
            result = Result(kind, machine, limits, chosen)
            late: list[Any] = []
            for row in measure(
                within(cases, self.seconds, late), timer, dtype, self.impl, **options
            ):
                # the same reason again is news to nobody
                if row.amount is not None or (row.what, row.why) not in {
                    (r.what, r.why) for r in result.rows
                }:
                    screen.say(table.line(row))
                result.rows.append(row)
                # whoever ends a long run keeps what it has
                self._write(result)
            result.rows += late
        if not any(row.amount is not None for row in result.rows):
            raise RuntimeError(f"nothing was timed: {result.rows[-1].why}")
        self._write(result)
        self.show(result)
        wrong = [row for row in result.rows if row.wrong and row.ours]
        if wrong:
            raise RuntimeError(f"{len(wrong)} not timed; {table.line(wrong[0])}")

    def _write(self, result: Any) -> None:
        """Write the rows that there are."""
        if self.out is not None:
            result.write(self.out)

    def show(self, result: Any) -> None:
        """Draw the result and print it in the form that was asked for."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        from dit_sparse.bench import plot, table

        if self.plot is not None:
            plot.write(result, self.plot)
        files = [path for path in (self.out, self.plot) if path is not None]
        if self.json:
            print(json.dumps(result.to_dict(), allow_nan=False))
        elif self.markdown:
            print(table.markdown(result))
        elif self.quiet:
            print("\n".join(map(str, files)))
        else:
            titles, body = table.rows(result)
            shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
            for title in titles:
                right = title not in ("shape", "size", "what")
                shown.add_column(title, justify="right" if right else "left", no_wrap=True)
            for cells in body:
                shown.add_row(*cells)
            screen = Screen(self.quiet, self.json)
            # a file or a pipe has no width of its own
            width = None if screen.out.is_terminal else 200
            Console(width=width, highlight=False).print(shown, markup=False)
            for text in [*table.notes(result), *(f"wrote {path}" for path in files)]:
                screen.out.print(text, style="dim", markup=False)


def within(cases: Iterable[Case], seconds: float, late: list[Any]) -> Iterator[Any]:
    """Yield cases until the time is over; the others go to `late` as rows."""
    begin = time.monotonic()
    for case in cases:
        if time.monotonic() - begin > seconds:
            late.append(replace(case.row, why=f"--seconds {seconds:g} were over"))
        else:
            yield case


def numbers(text: str, option: str, least: float, most: float) -> list[float]:
    """Return the numbers of a comma-separated list; each must be above `least`, at most `most`."""
    found = []
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            raise ArgumentError(f"{option} {text}: {word!r} is no number") from None
        if not least < value <= most:
            raise ArgumentError(
                f"{option} {text}: {value:g} must be above {least:g} and at most {most:.9g}"
            )
        found.append(value)
    return found


def lengths(text: str) -> list[int]:
    """Return token counts: `8192`, `8k,32k` or `8k..256k`, which doubles."""

    def one(word: str) -> int:
        match = re.fullmatch(r"(\d+)(k?)", word.strip())
        count = int(match[1]) * (1024 if match[2] else 1) if match else 0
        if not 16 <= count <= MOST_TOKENS:
            raise ArgumentError(
                f"--tokens {text}: {word!r} must be a count from 16 to {MOST_TOKENS // 1024}k, "
                "e.g. 32768, 8k,32k or 8k..256k"
            )
        return count

    found = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        count, end = one(first), one(last) if dots else one(first)
        while count <= end:
            found.append(count)
            count *= 2
    if not found:
        raise ArgumentError(f"--tokens {text} holds no length: the range goes down")
    return found


def sizes(text: str, option: str, example: str) -> list[tuple[int, int, int]]:
    """Return comma-separated triples such as 21x30x52."""
    found = []
    for word in text.split(","):
        if not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}x[1-9]\d{0,5}", word.strip()):
            raise ArgumentError(f"{option} {text}: {word!r} must be like {example}")
        a, b, c = map(int, word.split("x"))
        found.append((a, b, c))
    return found


def named(text: str, option: str, known: dict[str, Any]) -> list[Any]:
    """Return the values of comma-separated names."""
    for word in text.split(","):
        if word.strip() not in known:
            raise ArgumentError(f"{option} {word.strip()} is not known; use {', '.join(known)}")
    return [known[word.strip()] for word in text.split(",")]


def at_least(least: int, **given: int | None) -> None:
    """Raise unless every count that was given is large enough."""
    for name, value in given.items():
        if value is not None and value < least:
            raise ArgumentError(f"--{name.replace('_', '-')} {value} must be at least {least}")


def _calm(debug: bool, host: bool) -> AbstractContextManager[None]:
    """Keep warnings off the screen; host: also those of diffusers, which it imports."""
    return hushed(debug) if host else _no_warnings(debug)


@contextmanager
def _no_warnings(debug: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        yield
