"""How much memory one attention call takes beyond its inputs, length by length.

    plan    the most bytes held at once while a method arranges, scores and selects
    call    the same of the whole call, its output included

Both beyond q, k and v, which the caller holds anyway; all that a method keeps for later calls
counts. One call on a fresh state, which is the most that a generation needs in one layer. Maps of
blocks and lists grow as the square of the number of blocks: the fit tells where they begin to
matter.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dit_sparse.bench.check import NotTimed
from dit_sparse.bench.kernel import by_shape, guarded
from dit_sparse.bench.machine import Timer
from dit_sparse.bench.method import Case, learned, warm
from dit_sparse.bench.results import Row, Shape
from dit_sparse.core import QKV


def run(
    cases: Iterable[Case], timer: Timer, dtype: torch.dtype, impl: str = "auto"
) -> Iterator[Row]:
    """Measure dense attention and each method at each length."""

    def dense(shape: Shape, x: QKV, timer: Timer) -> Iterator[Row]:
        row = Row(shape, "dense", sparse=False)
        yield guarded(row, lambda: _held(row, timer, lambda: F.scaled_dot_product_attention(*x)))

    return by_shape(cases, timer, dtype, lambda case, x: [measure(case, x, timer, impl)], dense)


def measure(case: Case, x: QKV, timer: Timer, impl: str = "auto") -> Row:
    """Return the row of one method."""
    method = case.build()
    weights = learned(method, case.shape.head_dim, x.q.device)

    def find() -> Row:
        fresh = [warm(grid=case.shape.grid, impl=impl, weights=weights) for _ in range(2)]
        planned, plan = peak(lambda: method.plan(x, fresh[0]), timer.device)
        row = replace(case.row, density=plan.density().item(), bytes={"plan": planned})
        # what planning left behind is not the call's
        fresh.pop(0).cache.clear()
        del plan
        return _held(row, timer, lambda: method(x, fresh[0]))

    return guarded(case.row, find)


def _held(row: Row, timer: Timer, call: Callable[[], Tensor]) -> Row:
    """Return the row with the bytes that a call holds at once; raise when its output is not
    finite."""
    held, out = peak(call, timer.device)
    if not out.isfinite().all():
        raise NotTimed("wrong output: not finite", wrong=True)
    return replace(row, bytes={**row.bytes, "call": held})


def peak(call: Callable[[], Any], device: torch.device) -> tuple[int, Any]:
    """Return the most bytes that a call holds at once beyond those held before, and its result."""
    if device.type == "cuda":
        # a cycle that still holds tensors would be freed in the middle of the call
        gc.collect()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        out = call()
        return torch.cuda.max_memory_allocated(device) - before, out
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        out = call()
    events: Any = told.profiler
    # every allocation and release in the order of time
    moves = sorted(
        (event.start_ns(), event.nbytes())
        for event in events.kineto_results.events()
        if event.name() == "[memory]"
    )
    return max(accumulate((size for _, size in moves), initial=0)), out
