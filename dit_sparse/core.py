"""The nouns of the toolkit: a method is a value of four stages, a plan is plain tensors.

    x, ctx -> arrange -> score -> select -> Plan -> compute -> output

Dimensions: B batch, H query heads, Hkv key heads, S tokens, D head dim, M query blocks,
N key blocks. Stages are frozen dataclasses; none of them reads a global or a pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from dit_sparse.checks import Known, causal_only, check
from dit_sparse.errors import ArgumentError
from dit_sparse.schedule import Schedule
from dit_sparse.tokens import QKV, Blocks, Grid, Heads, Layout, layer_row, on_device

__all__ = [
    "QKV", "Blocks", "Context", "Grid", "Heads", "Known", "Layout", "Method", "Plan", "causal_only",
    "layer_row", "on_device",
]  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Plan:
    """What one attention call computes, as plain tensors.

    level: [B, H, M, N] int8; 0 = left to the remainder, 1 = exact, 2 <= l <= 6 = pooled by 2^(l-1).
    causal: query i sees keys j <= i + Skv - Sq. capacity: a known upper bound of the kept
    blocks per row, so that the lists need not be N wide. edge: compute leaves out more, the blocks
    whose largest weight stays below e^edge of the largest before them (see kernels/skip.py).
    """

    layout: Layout
    level: Tensor
    causal: bool = False
    capacity: int | None = None
    edge: float | None = None

    def lists(self) -> tuple[Tensor, Tensor]:
        """Return kv_count [B, H, M] and kv_index [B, H, M, C], int32, ascending, packed left."""
        keep = self.level == 1
        index = torch.argsort(keep.byte(), dim=-1, descending=True, stable=True)
        return keep.sum(-1, dtype=torch.int32), index[..., : self.capacity].int()

    def pairs(self) -> Tensor:
        """Return the visible query-key token pairs of each block pair, [B|1, H|1, M, N] int64."""
        device, heads = self.level.device, self.level.shape[1]
        rows = self.layout.q.bounds(device, heads).long()[..., :, None]
        cols = self.layout.kv.bounds(device, heads).long()[..., None, :]
        if not self.causal:
            return rows.diff(dim=-2) * cols.diff(dim=-1)
        # sum over rows below r of the keys seen past c is a triangle of this height
        height = (rows + self.layout.kv.length - self.layout.q.length - cols).clamp_(min=0)
        below = height * (height + 1) // 2
        return -below.diff(dim=-2).diff(dim=-1)

    def density(self) -> Tensor:
        """Return the share of the visible query-key pairs that is computed, a 0-d float32 tensor.

        A block of level l has 2^(l-1) times fewer pairs to compute; one of level 0 has none. With
        an edge an upper bound: what compute did is ctx.cache["density"].
        """
        (rows, cols), (batch, heads), device = self.layout, self.level.shape[:2], self.level.device
        # 32 for an exact block, half of it for each level more; maps are large, and a GPU sums this
        # dtype in float32 without a wide copy
        work = (64 >> self.level & 63).bfloat16()
        if self.causal:
            pairs = self.pairs().float()
            return (work * (pairs / pairs.sum((-2, -1), keepdim=True))).sum() / (32 * batch * heads)
        if cols.offsets is None:
            short = cols.count * cols.size - cols.length
            keys = work.sum(-1, dtype=torch.float32) * cols.size - work[..., -1].float() * short
        else:
            keys = (work.float() @ cols.sizes(device, heads).float()[..., None])[..., 0]
        seen = (keys * rows.sizes(device, heads)).sum()
        return seen / (32.0 * batch * heads * rows.length * cols.length)


@dataclass(frozen=True, eq=False)
class Context:
    """Everything a stage may know besides the tensors.

    state: a dict per (layer, CFG branch) that lives for one generation; the only thing a method may
    write. cache: a dict for this call alone, shared by its stages through `once`. heads: which ones
    the tensors hold, where not all. weights: this layer's learned tensors by name, perhaps none.
    """

    grid: Grid | None = None
    layer: int = 0
    step: int = 0
    steps: int = 1
    causal: bool = False
    heads: Heads | None = None
    scale: float | None = None
    impl: str = "auto"
    state: dict[Hashable, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    cache: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return `make()`, computed the first time a stage of this call asks for `key`."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    def held(self, heads: int) -> tuple[int, slice]:
        """Return the model's number of heads, and which of them the `heads` of a call are."""
        first, total = (self.heads.first, self.heads.total) if self.heads else (0, heads)
        return total, slice(first, first + heads)

    def learned(self, name: str, *shape: int) -> Tensor:
        """Return a learned tensor of this layer; raise unless it is there in this shape."""
        found = self.weights.get(name)
        if found is None:
            have = ", ".join(sorted(self.weights)) or "none"
            raise ArgumentError(f"weights: layer {self.layer} has no {name!r}; it has: {have}")
        if found.shape != shape:
            has = f"{name!r} of layer {self.layer} has shape {list(found.shape)}"
            raise ArgumentError(f"weights: {has}; these tensors need {list(shape)}")
        return found


class Arrange(Protocol):
    """Stage 1: order and cut the tokens."""

    def __call__(self, x: QKV, ctx: Context) -> Layout: ...


class Score(Protocol):
    """Stage 2: score [B, H, M, N] of the video blocks; larger = keep."""

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor: ...


class Select(Protocol):
    """Stage 3: level [B, H, M, N] int8 of the video blocks."""

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor: ...

    def capacity(self, columns: int) -> int | None:
        """Return the most blocks a row can keep of `columns`, None when only the data knows."""


class Compute(Protocol):
    """Stage 4: the output [B, H, Sq, Dv] in the original token order."""

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor: ...


@runtime_checkable
class Skipping(Protocol):
    """A compute stage that can make a choice on its way."""

    def edge(
        self, score: Score, select: Select, x: QKV, layout: Layout, ctx: Context
    ) -> float | None:
        """Return from where on blocks are kept; None: the choice must stand before the call."""
        ...


@dataclass(frozen=True)
class Method:
    """One sparse attention: four stages and a schedule, compared and hashed by value.

    weights: path of the safetensors file that fills `Context.weights`; tensors: the names in it
    that the stages read.
    """

    arrange: Arrange
    score: Score
    select: Select
    compute: Compute
    schedule: Schedule = Schedule()
    weights: str | None = None
    tensors: tuple[str, ...] = ()

    def check(
        self, layers: int, heads: int | None = None, steps: int | None = None, grid: Grid | None =
        None, causal: bool | None = None,
    ) -> None:  # fmt: skip
        """Raise where a parameter cannot work in a model or, with steps and grid, a generation.

        layers: self-attention layers of the model. What is None is not known yet: call again when
        it is. Every stage and part of one that is `Checked` is asked; dense calls are left out.
        """
        # the last step is sparse wherever any is; the longest generation stands for an unknown one
        total = steps or 1 << 30
        at = self.schedule.at
        sparse = tuple(n for n in range(layers) if at(n, total - 1, total) == "sparse")
        first = self.schedule.first_sparse_step(total)
        known = Known(sparse, heads, range(first, steps) if steps else None, grid, causal)
        for stage in (self.arrange, self.score, self.select, self.compute) if sparse else ():
            check(stage, known)

    @on_device
    def plan(self, x: QKV, ctx: Context) -> Plan:
        """Arrange, score and select: what `compute` would run for these tensors.

        A choice that compute makes on its way is left to it: the plan holds its edge.
        """
        layout, edge = self.arrange(x, ctx), None
        future, diagonal = layout.future(x.q.device) if ctx.causal else (None, None)
        if isinstance(self.compute, Skipping):
            edge = self.compute.edge(self.score, self.select, x, layout, ctx)
        if edge is None:
            score = self.score(x, layout, ctx)
            score = score if future is None else score.masked_fill(future, float("-inf"))
            level = self.select(score, layout, ctx)
        else:
            shape = (*x.q.shape[:2], layout.q.video, layout.kv.video)
            level = torch.ones(shape, dtype=torch.int8, device=x.q.device)
        if future is not None and diagonal is not None:
            level = level.masked_fill(future, 0).masked_fill(diagonal, 1)
        # text rows and columns are kept exactly, whatever the method: written once, here
        text_q, text_kv = layout.q.text_blocks, layout.kv.text_blocks
        if text_q or text_kv:
            # a head of which nothing at all is kept is skipped whole, its text too
            skipped = ~level.flatten(-2).any(-1)[..., None, None]
            level = torch.nn.functional.pad(level, (0, text_kv, 0, text_q), value=1)
            level = level.masked_fill(skipped, 0)
        capacity = self.select.capacity(layout.kv.video)
        capacity = None if text_q or ctx.causal or capacity is None else capacity + text_kv
        return Plan(layout, level, ctx.causal, capacity, edge)

    def __call__(self, x: QKV, ctx: Context) -> Tensor:
        """Run the four stages: the output [B, H, Sq, Dv] in the original token order."""
        ctx = replace(ctx, cache={})  # it belongs to the tensors of one call
        return self.compute(x, self.plan(x, ctx), ctx)

    def with_schedule(self, schedule: Schedule | None) -> Method:
        """Return this method under another schedule (None keeps its own, as does no phase)."""
        return self if schedule is None else replace(self, schedule=schedule.over(self.schedule))

    def with_quant(self, quant: str) -> Method:
        """Return this method with its attention in "fp8", or not ("none")."""
        if quant == getattr(self.compute, "quant", "none"):
            return self
        if not hasattr(self.compute, "quant"):
            raise ArgumentError(f"quant={quant!r} needs attention to blocks, not {self.compute}")
        return replace(self, compute=replace(cast(Any, self.compute), quant=quant))
