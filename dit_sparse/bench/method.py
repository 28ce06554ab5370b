"""Whole methods, selection and remainder included, in the warm state, and stage by stage.

What is checked first, and why so. The composition: the method's output on a small video of the same
dtype, head dim and device against its own float64 oracle (impl "reference") on the same plan, so
that ties in a choice cannot fail a correct kernel. A whole method has no oracle at full size, for
remainders reach over all tokens. The arithmetic at full size: the kernel call that the method
makes, with its columns, tail, masks and cuts, against the reference on sampled query rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dit_sparse.arranged import arranged
from dit_sparse.bench.check import NotTimed, check_listed, refuse
from dit_sparse.bench.kernel import by_shape, timed
from dit_sparse.bench.machine import Timer, captured
from dit_sparse.bench.results import Row, Shape
from dit_sparse.compute import attend
from dit_sparse.core import QKV, Context, Grid, Layout, Method, Plan
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.attention import block_sparse_attention
from dit_sparse.registry import entry, get
from dit_sparse.testing import Problem, relative_error, rounding_band

STAGES = ("layout", "move", "score", "select", "compute", "kernel", "kept")
# with these a method's `keep` is its whole budget, where it adds blocks by rules of its own, and
# its blocks are those that its profiles use on large models
SET: dict[str, dict[str, Any]] = {
    "rectified": {"neighbours": "within", "p_remain": 0.0},
    "sla": {"block": (128, 64)},
    "sparse_vdit": {"block": 128},
    "svg": {"block": 128},
}
# past every schedule's dense start; a layer of the third kind where kinds of layers alternate
warm = partial(Context, layer=2, step=20, steps=50)
SMALL = Grid(5, 12, 16)


@dataclass(frozen=True)
class Case:
    """A registered method at a budget on a video."""

    shape: Shape
    name: str
    keep: float
    params: tuple[tuple[str, Any], ...] = ()
    pairs = 0  # lists are small beside the tensors

    def build(self) -> Method:
        """Return the method with its settings."""
        return get(self.name, keep=self.keep, **{**SET.get(self.name, {}), **dict(self.params)})

    @property
    def row(self) -> Row:
        """The row that the method is to fill."""
        return Row(self.shape, self.name, settings={"keep": self.keep, **dict(self.params)})


def names() -> list[str]:
    """Return the methods that have a budget; dense attention is the baseline of all."""
    from dit_sparse.registry import methods

    return [name for name in methods() if "keep" in entry(name).parameters]


def run(
    cases: Iterable[Case], timer: Timer, dtype: torch.dtype, impl: str = "auto"
) -> Iterator[Row]:
    """Check and time each method and its stages, after the dense baselines of its shape."""
    clock = replace(timer, replay=True)
    return by_shape(cases, clock, dtype, lambda case, x: [measure(case, x, timer, impl)])


def measure(case: Case, x: QKV, timer: Timer, impl: str = "auto") -> Row:
    """Return the checked and timed row of one method: on the device alone, and from Python."""
    method = case.build()
    weights = learned(method, case.shape.head_dim, x.q.device)
    # one state for all calls: what a method keeps from step to step is there
    ctx = warm(grid=case.shape.grid, impl=impl, weights=weights)
    stages: dict[str, float] = {}
    state: dict[Any, Any] = {}
    density, alone = 1.0, None

    def again() -> Tensor:
        # every call begins from one state, and a graph reads that memory as long as it lives
        return method(x, replace(ctx, state=dict(state)))

    def check(out: Tensor) -> float:
        nonlocal density, alone
        if not out.isfinite().all():
            raise NotTimed("wrong output: not finite", wrong=True)
        calls, plan = stage_calls(x, method, ctx)
        density = plan.density().item()
        kernel = calls["kernel"]
        out, lse = kernel()
        shares = (
            verify(method, x.q, case.shape, impl, weights),
            check_listed(out, kernel.args, kernel.options, "its kernel call", lse),
        )
        state.update(ctx.state)
        # beside its stages: a card that ran hot in between would be slower
        alone, share = replayed(again, timer)
        clock = replace(timer, replay=True)
        for name in STAGES:
            # compiled for the first time, a kernel without its columns takes seconds
            calls[name]()
            stages[name] = clock.ms(calls[name])
        return max(*shares, share)

    row = timed(case.row, timer, lambda: lambda: method(x, ctx), check)
    if row.ms is None:
        return replace(row, density=density)
    if alone is not None:
        row = replace(row, eager=row.ms, ms=alone)
    return replace(row, density=density, stages=stages)


def replayed(call: Callable[[], Tensor], timer: Timer) -> tuple[float | None, float]:
    """Return the ms of a call as a CUDA graph and its error as a share of a rounding.

    The time is None where there is no graph; raises when the graph gives something else.
    """
    replay, drawn = captured(call, timer.device)
    if drawn is None:
        return None, 0.0
    true = call()
    drawn.zero_()
    replay()
    share = relative_error(drawn, true) / rounding_band(true.dtype)
    return timer.ms(replay), refuse(share, "its replay as a CUDA graph")


def verify(
    method: Method, like: Tensor, shape: Shape, impl: str, weights: dict[str, Tensor]
) -> float:
    """Return a method's error on a small video as a share of its bound; raise when above it.

    like: gives dtype and device. The video has text when that of the shape has.
    """
    text = shape.grid is not None and shape.grid.text > 0
    grid = replace(SMALL, text=17) if text else SMALL
    problem = Problem.make(grid, batch=1, dim=shape.head_dim)
    x = QKV(*(t.to(like.device, like.dtype) for t in problem.x))
    exact = QKV(*(t.double() for t in x))

    def ctx(impl: str) -> Context:
        return warm(grid=grid, impl=impl, weights=weights)

    plan = method.plan(exact, ctx("reference"))
    true = method.compute(exact, plan, ctx("reference"))
    near = relative_error(method.compute(x, plan, ctx("reference")), true)
    out = method.compute(x, plan, ctx(impl))
    if not out.isfinite().all():
        raise NotTimed("wrong output: not finite on a small video", wrong=True)
    bound = 2 * near + rounding_band(like.dtype)
    return refuse(relative_error(out, true) / bound, "the method on a small video")


def learned(method: Method, dim: int, device: torch.device) -> dict[str, Tensor]:
    """Return random weights for the tensors that a method reads: maps [D, D], biases, shares."""
    g = torch.Generator(device).manual_seed(2)
    shapes = {name: (dim, dim) if name.endswith("weight") else (dim,) for name in method.tensors}
    found = {n: torch.randn(s, generator=g, device=device) / dim for n, s in shapes.items()}
    return {n: x[:1].sigmoid() if n == "alpha" else x for n, x in found.items()}


@dataclass(frozen=True, eq=False)
class KernelCall:
    """The kernel call of a method, to be repeated."""

    args: Any
    options: dict[str, Any]

    def __call__(self) -> tuple[Tensor, Tensor]:
        return block_sparse_attention(*self.args, **self.options)


def stage_calls(x: QKV, method: Method, ctx: Context) -> tuple[dict[str, Any], Plan]:
    """Return a call for every stage by itself, and the plan.

    layout: order and cut. move: k and v into that order; the kernel reads q by it where it can.
    score, select. compute: all the rest, of which `kernel` is the attention kernel with its extras
    and `kept` the same lists without columns and tail. Each call finds in its cache what the stages
    before it left there, and begins from the state that `ctx` holds now.
    """

    def context(cache: dict) -> Context:
        return replace(ctx, cache=dict(cache), state=dict(ctx.state))

    def move(layout: Layout, ctx: Context) -> Tensor:
        return arranged(x, layout, ctx).k

    own = context({})
    layout = method.arrange(x, own)
    placed = dict(own.cache)
    move(layout, own)
    moved = dict(own.cache)
    score = method.score(x, layout, own)
    scored = dict(own.cache)
    # arranging moved the clusters kept in that state: the plan begins from the same ones
    own = context({})
    plan = method.plan(x, own)
    move(plan.layout, own)
    planned = dict(own.cache)
    with mock.patch.object(attend, "block_sparse_attention", wraps=block_sparse_attention) as spy:
        method.compute(x, plan, own)
    if spy.call_args is None:
        raise ArgumentError("this method makes no call of the block-sparse kernel")
    args, options = spy.call_args
    # a choice by single queries stays: it is what they keep
    bare = {**options, "columns": None, "tail": None}
    calls = {
        "layout": lambda: method.arrange(x, context({})),
        "move": lambda: move(layout, context(placed)),
        "score": lambda: method.score(x, layout, context(moved)),
        "select": lambda: method.select(score, layout, context(scored)),
        "compute": lambda: method.compute(x, plan, context(planned)),
        "kernel": KernelCall(args, options),
        "kept": KernelCall(args, bare),
    }
    return calls, plan
