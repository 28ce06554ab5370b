"""The attention kernel alone: random block lists, one per head and query block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from dit_sparse.bench.baselines import DENSE, SPARSE, Lists
from dit_sparse.bench.check import ROWS, NotTimed, check_dense, check_listed
from dit_sparse.bench.machine import Timer, free_bytes, gib
from dit_sparse.bench.results import Row, Shape
from dit_sparse.core import QKV
from dit_sparse.kernels import attention
from dit_sparse.kernels.attention import block_sparse_attention

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One choice of lists. spread: the longest list over the shortest, 1 = all equally long."""

    shape: Shape
    density: float
    block_q: int = 128
    block_kv: int = 128
    spread: float = 1.0

    @property
    def row(self) -> Row:
        """The row that our kernel is to fill."""
        told = {"keep": self.density, "block": f"{self.block_q}x{self.block_kv}"}
        told |= {} if self.spread == 1 else {"spread": f"{self.spread:g}"}
        return Row(self.shape, "ours", settings=told)


def run(
    cases: Iterable[Case], timer: Timer, dtype: torch.dtype, impl: str = "auto", others: bool = True
) -> Iterator[Row]:
    """Check and time our kernel on each case, and the baselines on the same tensors and lists.

    Dense baselines run once per shape. others: False leaves the sparse baselines out.
    """
    shape, x, why = None, None, ""
    for case in cases:
        if case.shape != shape:
            shape, x = case.shape, None
            blocks = (-(-shape.tokens // b) for b in (case.block_q, case.block_kv))
            why = no_room(shape, timer.device, dtype, lists=prod(blocks))
            if not why:
                x = draw(shape, timer.device, dtype)
                yield from dense_rows(shape, x, timer)
        if x is None:
            yield replace(case.row, why=why)
        else:
            yield from _sparse_rows(case, x, timer, impl, others)


def _sparse_rows(case: Case, x: QKV, timer: Timer, impl: str, others: bool) -> Iterator[Row]:
    """Run our kernel and the sparse baselines over the same lists."""
    lists = random_lists(case, timer.device)
    row = replace(case.row, density=density(lists, case.shape.tokens))
    args: Any = (*x, lists.count, lists.index)
    cuts: Any = {"q_blocks": lists.block_q, "kv_blocks": lists.block_kv}
    name, _ = attention.kernel(*x, **cuts, impl=impl)

    def check(result: tuple[Tensor, Tensor]) -> float:
        return check_listed(result[0], args, cuts, "the kernel", result[1])

    def ours() -> Call:
        return lambda: block_sparse_attention(*args, **cuts, impl=impl)

    yield timed(replace(row, what=f"ours ({name})"), timer, ours, check)
    for other, make in SPARSE.items() if others else ():
        verify = functools.partial(check_listed, args=args, options=cuts, what=other)
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
    try:
        call = build()
        error = check(call())
        return replace(row, error=error, ms=timer.ms(call))
    except NotTimed as error:
        return replace(row, why=str(error), wrong=error.wrong)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return replace(row, why="out of memory")
    except Exception as error:
        # what others ship may fail in any way, and one failure must not cost the other rows
        text = " ".join(str(error).split())[:160]
        return replace(row, why=f"{type(error).__name__}: {text}", wrong=row.ours)


def no_room(shape: Shape, device: torch.device, dtype: torch.dtype, lists: int = 0) -> str:
    """Say why a case does not fit the memory, "" when it does; lists: block pairs of a head."""
    # the tensors, the oracle's float64 keys, values and logits, and lists while they are drawn
    oracle = shape.heads * shape.tokens * 8 * (2 * shape.head_dim + 5 * ROWS)
    need = shape.bytes(dtype.itemsize) + oracle + 24 * shape.heads * lists
    free = free_bytes(device)
    return f"needs about {gib(need)}, {gib(free)} are free" if need > free else ""


def draw(shape: Shape, device: torch.device, dtype: torch.dtype) -> QKV:
    """Draw normal q, k, v [1, H, S, D], the same numbers for the same shape."""
    g = torch.Generator(device).manual_seed(0)
    size = (1, shape.heads, shape.tokens, shape.head_dim)
    return QKV(*(torch.randn(size, generator=g, device=device, dtype=dtype) for _ in range(3)))


def random_lists(case: Case, device: torch.device) -> Lists:
    """Draw ascending lists; their lengths are uniform between bounds whose ratio is the spread.

    spread=1000 draws from one block to twice the mean. A list never exceeds all blocks, so that a
    wide spread at a high density lowers the mean; a row's density is counted, never assumed.
    """
    g = torch.Generator(device).manual_seed(1)
    rows, blocks = (-(-case.shape.tokens // b) for b in (case.block_q, case.block_kv))
    size, mean = (1, case.shape.heads, rows), case.density * blocks
    low, high = 2 * mean / (1 + case.spread), 2 * mean * case.spread / (1 + case.spread)
    count = low + (high - low) * torch.rand(size, generator=g, device=device)
    count = count.round().clamp(1, blocks).int()
    longest = min(blocks, max(1, round(high)))
    # what is kept of the ids drawn for a row, then ascending with the unused ones behind
    index = torch.rand(*size, blocks, generator=g, device=device).topk(longest, -1).indices
    unused = torch.arange(longest, device=device) >= count[..., None]
    index = index.masked_fill(unused, blocks).sort(-1).values
    return Lists(count, index.masked_fill(unused, 0).int(), case.block_q, case.block_kv)


def density(lists: Lists, tokens: int) -> float:
    """Count the share of the query-key pairs that the lists compute; the last blocks may be short.

    The lists are the whole plan: nothing else is computed.
    """

    def sizes(count: int, block: int) -> Tensor:
        size = torch.full((count,), block, dtype=torch.float64, device=lists.index.device)
        size[-1] = tokens - block * (count - 1)
        return size

    rows = sizes(lists.count.shape[2], lists.block_q)
    keys = sizes(-(-tokens // lists.block_kv), lists.block_kv)[lists.index.long()]
    kept = torch.arange(lists.index.shape[-1], device=keys.device) < lists.count[..., None]
    pairs = ((keys * kept).sum(-1) * rows).sum()
    return float(pairs) / (lists.count.shape[1] * tokens**2)
