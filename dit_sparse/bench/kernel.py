"""The attention kernel alone: random block lists, one per head and query block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dit_sparse.bench.baselines import DENSE, SPARSE
from dit_sparse.bench.check import ROWS, NotTimed, check_dense, check_fp8, check_listed
from dit_sparse.bench.lists import Case, call_options, density, random_lists
from dit_sparse.bench.machine import Timer, free_bytes, gib
from dit_sparse.bench.results import Row, Shape
from dit_sparse.core import QKV
from dit_sparse.kernels import attention
from dit_sparse.kernels.attention import block_sparse_attention

Call = Callable[[], Any]


def run(
    cases: Iterable[Case], timer: Timer, dtype: torch.dtype, impl: str = "auto", others: bool =
    True, quants: tuple[str, ...] = ("none",),
) -> Iterator[Row]:  # fmt: skip
    """Check and time our kernel on each case, and the baselines on the same tensors and lists.

    Dense baselines run once per shape. others: False leaves the sparse baselines out, which take
    no other form than equal blocks. quants: what our products are made of, a row each.
    """
    clock = replace(timer, replay=True)
    rows = functools.partial(_sparse_rows, timer=clock, impl=impl, others=others, quants=quants)
    return by_shape(cases, clock, dtype, rows)


def by_shape(
    cases: Iterable[Any],
    timer: Timer,
    dtype: torch.dtype,
    rows: Callable[[Any, QKV], Iterable[Row]],
    dense: Callable[[Shape, QKV, Timer], Iterable[Row]] | None = None,
    make: Callable[[Any], QKV | str] | None = None,
) -> Iterator[Row]:
    """Yield the dense rows of each new shape, then the rows of its cases on the same tensors.

    dense: makes the former, `dense_rows` unless given. make: draws a case's tensors or says why it
    cannot, `draw` where there is room unless given.
    """
    shape, x = None, ""
    for case in cases:
        if case.shape != shape:
            shape = case.shape
            if make is not None:
                x = make(case)
            else:
                why = no_room(shape, timer.device, dtype, case.pairs)
                x = why or draw(shape, timer.device, dtype)
            if not isinstance(x, str):
                yield from (dense or dense_rows)(shape, x, timer)
        if isinstance(x, str):
            yield replace(case.row, why=x)
        else:
            yield from rows(case, x)


def _sparse_rows(
    case: Case, x: QKV, timer: Timer, impl: str, others: bool, quants: tuple[str, ...]
) -> Iterator[Row]:
    """Run our kernel and the sparse baselines over the same lists."""
    lists = random_lists(case, timer.device)
    options = call_options(case, x, lists)
    row = replace(case.row, density=density(lists, case.shape.tokens, options))
    args: Any = (*x, lists.count, lists.index)
    asked = {key: value for key, value in options.items() if key != "tail"}
    for quant in quants:
        name, reason = attention.kernel(*x, **asked, impl=impl, quant=quant)
        rounds = reason.endswith("; in fp8")

        def check(result: tuple[Tensor, Tensor], rounds: bool = rounds) -> float:
            if rounds:
                return check_fp8(result[0], args, options, "the kernel in fp8")
            return check_listed(result[0], args, options, "the kernel", result[1])

        def ours(quant: str = quant) -> Call:
            return lambda: block_sparse_attention(*args, **options, impl=impl, quant=quant)

        what = f"ours ({name}, fp8)" if rounds else f"ours ({name})"
        yield timed(replace(row, what=what), timer, ours, check)
    for other, make in SPARSE.items() if others and case.form == "equal" else ():
        verify = functools.partial(check_listed, args=args, options=options, what=other)
        theirs = replace(row, what=other, foreign=True)
        yield timed(theirs, timer, functools.partial(make, x, lists), verify)


def dense_rows(shape: Shape, x: QKV, timer: Timer) -> Iterator[Row]:
    """Check and time every dense baseline on some tensors."""
    for name, make in DENSE.items():
        verify = functools.partial(check_dense, x=x, what=name)
        row = Row(shape, name, sparse=False)
        yield timed(row, timer, functools.partial(make, x), verify)


def timed(
    row: Row, timer: Timer, build: Callable[[], Call], check: Callable[[Any], float | None]
) -> Row:
    """Return the row with its error and time, or with the reason why there is none.

    build: returns the call to time. check: takes its result and returns the error as a share of
    the bound, if it has one; what it refuses is not timed.
    """

    def find() -> Row:
        call = build()
        error = check(call())
        return replace(row, error=error, ms=timer.ms(call))

    return guarded(row, find)


def guarded(row: Row, find: Callable[[], Row]) -> Row:
    """Return what `find` finds, or the row with the reason why it finds nothing."""
    try:
        return find()
    except NotTimed as error:
        return replace(row, why=str(error), wrong=error.wrong)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return replace(row, why="out of memory")
    except Exception as error:
        # what others ship may fail in any way, and one failure must not cost the other rows
        text = " ".join(str(error).split())[:160]
        return replace(row, why=f"{type(error).__name__}: {text}", wrong=row.ours)


def no_room(shape: Shape, device: torch.device, dtype: torch.dtype, pairs: int = 0) -> str:
    """Say why a case does not fit the memory, "" when it does; pairs: of blocks in a head."""
    # the tensors, the oracle's float64 keys, values and logits, and lists while they are drawn
    oracle = shape.heads * shape.tokens * 8 * (2 * shape.head_dim + 5 * ROWS)
    need = shape.bytes(dtype.itemsize) + oracle + 24 * shape.heads * pairs
    free = free_bytes(device)
    return f"needs about {gib(need)}, {gib(free)} are free" if need > free else ""


def draw(shape: Shape, device: torch.device, dtype: torch.dtype) -> QKV:
    """Draw normal q, k, v [1, H, S, D], the same numbers for the same shape."""
    g = torch.Generator(device).manual_seed(0)
    size = (1, shape.heads, shape.tokens, shape.head_dim)
    return QKV(*(torch.randn(size, generator=g, device=device, dtype=dtype) for _ in range(3)))
