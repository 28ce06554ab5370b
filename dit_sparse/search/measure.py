"""What each candidate loses and costs, on the q, k, v of dense generations.

    error(step, layer, head, c) = |o_c - o|^2 / sum over heads |o|^2     all rows, both CFG branches
    time(c, n heads)            = a_c + b_c n                            on this device
    time(layer of m letters)    = sum of its letters + split (m - 1)

o is the dense output, which the generation needs anyway and goes on with, so that no row has to be
sampled. a_c is what a launch of its own costs, found from calls with all heads and with one, and
the share of a step in what the first call of a generation takes longer; split what it costs to take
heads apart and put them together, from a layer of two letters by turns.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import dense
from dit_sparse.core import QKV, Context, Method, Plan
from dit_sparse.mixed import is_dense, take
from dit_sparse.registry import get
from dit_sparse.score.pooled import PooledDot
from dit_sparse.search.candidates import Candidate
from dit_sparse.select.topk import TopK

REPEATS = 7  # of a timed call, after an untimed one
PLACES = 3  # layers where calls are timed

See = Callable[[QKV, Context, Tensor], Tensor]


@dataclass(frozen=True)
class Observed:
    """Dense attention whose output `see` looks at, and may replace."""

    see: See

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        return self.see(x, ctx, dense(x, ctx))


def observing(see: See) -> Method:
    """Return dense attention that calls `see` with q, k, v, the context and the output."""
    return Method(Raster(), PooledDot(), TopK(1.0), Observed(see))


@dataclass
class Errors:
    """Collects the squared errors of all candidates in one generation; an argument of `observing`.

    found: (step, layer) -> [C + 1, H] sums of squares, of the dense output in the last row. They
    stay on the device until `told`: C numbers a head and call, never an output.
    """

    candidates: tuple[Candidate, ...]
    found: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, x: QKV, ctx: Context, out: Tensor) -> Tensor:
        sums = [_squares(out).new_zeros(x.q.shape[1])]
        for candidate in self.candidates[1:]:
            sums.append(_squares(run(candidate, x, ctx) - out))
        here = torch.stack([*sums, _squares(out)])
        key = ctx.step, ctx.layer
        self.found[key] = self.found[key] + here if key in self.found else here
        return out

    def told(self) -> dict[str, Any]:
        """Return errors [steps][layers][heads][C] relative to their layer; waits for the device."""
        cells: dict[int, dict[int, Tensor]] = defaultdict(dict)
        for (step, layer), sums in sorted(self.found.items()):
            # a layer that gives zeros can lose nothing
            size = sums[-1].sum().clamp(min=torch.finfo(sums.dtype).tiny)
            cells[step][layer] = (sums[:-1] / size).T.double().cpu()
        errors = [torch.stack([row[n] for n in sorted(row)]) for row in cells.values()]
        return {"errors": [[[[float(f"{e:.4g}") for e in h] for h in layer] for layer in step]
                           for step in (t.tolist() for t in errors)]}  # fmt: skip


@dataclass
class Times:
    """Times all candidates at some layers in one generation; an argument of `observing`.

    layers: the numbers of layers to time. steps: of a generation. found: what was timed -> seconds,
    one per timed layer: (candidate number, heads), (candidate number, "first") as in the first call
    of a generation, and "split" for a layer of two letters. heads: of the model.
    """

    candidates: tuple[Candidate, ...]
    layers: tuple[int, ...]
    steps: int = 1
    found: dict[Any, list[float]] = field(default_factory=dict)
    heads: int = 0
    seen: set[int] = field(default_factory=set)

    @torch.no_grad()
    def __call__(self, x: QKV, ctx: Context, out: Tensor) -> Tensor:
        if ctx.layer in self.layers and ctx.layer not in self.seen:
            self.seen.add(ctx.layer)
            for name, seconds in _medians(self._calls(x, ctx)).items():
                self.found.setdefault(name, []).append(seconds)
        return out

    def told(self) -> dict[str, Any]:
        """Return the seconds of each candidate, [fixed, per head], and those of a further letter.

        Of all layers timed, each part is the median.
        """
        lines, heads = [], self.heads
        for number in range(len(self.candidates)):
            whole, one = (median(self.found[number, count]) for count in (heads, 1))
            each = max(0.0, (whole - one) / (heads - 1)) if heads > 1 else whole
            late = max(0.0, median(self.found[number, "first"]) - whole) / self.steps
            lines.append([max(0.0, whole - each * heads) + late, each])
        pair = sum(fixed + each * heads / 2 for fixed, each in lines[:2])
        split = max(0.0, median(self.found["split"]) - pair) if heads > 1 else 0.0
        return {"seconds": lines, "split": split, "heads": heads}

    def _calls(self, x: QKV, ctx: Context) -> dict[Any, Callable[[], Tensor]]:
        """Return what is timed, by name."""
        self.heads = heads = x.q.shape[1]
        # the last head, for a view of the first would be contiguous for one sample
        one = QKV(*(take(t, (heads - 1,), heads) for t in x))
        calls: dict[Any, Callable[[], Tensor]] = {}
        for number, candidate in enumerate(self.candidates):
            for count, part in ((heads, x), (1, one)):
                calls[number, count] = partial(run, candidate, part, replace(ctx, state={}))
            calls[number, "first"] = partial(anew, candidate, x, ctx)
        # heads of two letters by turns, which have to be put in order
        some = self.candidates[:2]
        letters = tuple(c.text for c in some)
        both: Any = get("mixed", letters=letters, table="".join(c.letter for c in some))
        mixed = replace(some[0], method=both)
        calls["split"] = partial(run, mixed, x, replace(ctx, state={}))
        return calls


def run(candidate: Candidate, x: QKV, ctx: Context) -> Tensor:
    """Return a candidate's output for a call, with a state of its own."""
    if is_dense(candidate.method):
        return dense(x, ctx)
    state = ctx.state.setdefault(("candidate", candidate.letter), {})
    return candidate.method(x, replace(ctx, heads=None, state=state, cache={}))


def anew(candidate: Candidate, x: QKV, ctx: Context) -> Tensor:
    """Run a candidate as in its first call; nothing stays in the state of the generation."""
    return run(candidate, x, replace(ctx, state={}))


def _squares(x: Tensor) -> Tensor:
    """Return the sum of squares of each head of x [B, H, S, D], [H], float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=(0, 2, 3), dtype=wide).square()


def _medians(calls: dict[Any, Callable[[], Tensor]]) -> dict[Any, float]:
    """Return the median times of calls that run by turns: a slow spell is a spell for all."""
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS + 1):
        for name, call in calls.items():
            sync()
            begin = time.perf_counter()
            call()
            sync()
            times[name].append(time.perf_counter() - begin)
    return {name: median(found[1:]) for name, found in times.items()}
