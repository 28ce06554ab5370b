"""A method of its own for every head, as one value of four stages.

Heads of one letter are one group: its method arranges, scores and selects on their q, k, v alone,
and computes them in launches of its own. The plan of all heads is the groups' plans side by side,
their blocks padded with empty ones to the same number, so that whoever reads a plan reads this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.compute.attend import Dense
from dit_sparse.constants import constant
from dit_sparse.core import QKV, Blocks, Context, Known, Layout, Method, Plan, layer_row
from dit_sparse.errors import ArgumentError
from dit_sparse.schedule import Schedule

Layers = str | tuple[str, ...]
Rows = Layers | tuple[tuple[str, ...], ...]


class Letter(NamedTuple):
    """A letter, its method and the text that says both."""

    letter: str
    method: Method
    text: str

    def __repr__(self) -> str:
        return self.text


class Group(NamedTuple):
    """Heads that share a method: their numbers, their tensors, its plan and the context of both."""

    heads: tuple[int, ...]
    method: Method
    x: QKV
    plan: Plan
    ctx: Context


@dataclass(frozen=True)
class ByHead:
    """Which method each head has, by layer and by part of the generation.

    methods: what each letter stands for. rows: one string for every layer, repeated over the
    heads; one string per layer; or a list of these per part. begins: the share of the steps at
    which each part but the first begins.
    """

    methods: tuple[Letter, ...]
    rows: Rows
    begins: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        letters = [letter for letter, *_ in self.methods]
        twice = next((c for c in letters if letters.count(c) > 1), None)
        if twice:
            raise ArgumentError(f"letters: {twice!r} stands for two methods; use another letter")
        for letter, method, _ in self.methods:
            if method.tensors or method.schedule.phase:
                kind = "a causal model" if method.schedule.phase else "learned weights"
                raise ArgumentError(f"letters: {letter!r} has a method that needs {kind}")
        if any(type(n) not in (int, float) for n in self.begins) or not all(
            a < b for a, b in zip((0, *self.begins), (*self.begins, 1), strict=True)
        ):
            raise ArgumentError(
                f"begins={list(self.begins)!r} must be shares of the steps that rise between 0 and "
                "1, such as [0.25, 0.5]"
            )
        parts = self.rows if self._by_part else (self.rows,)
        if len(parts) != len(self.begins) + 1:
            raise ArgumentError(
                f"begins={list(self.begins)!r} needs {len(self.begins) + 1} tables, one for each "
                f"part of the steps; there are {len(parts)}"
            )
        for part in parts:
            for row in (part,) if isinstance(part, str) else part:
                if not isinstance(row, str) or not row or set(row) - set(letters):
                    raise ArgumentError(
                        f"table: {row!r} must be a string of the letters {', '.join(letters)}, one "
                        "per head"
                    )
        if len({len(part) for part in parts if not isinstance(part, str)}) > 1:
            raise ArgumentError("table: its parts have different numbers of layers")

    @property
    def _by_part(self) -> bool:
        rows = self.rows
        return bool(self.begins) or (bool(rows) and isinstance(rows[0], tuple))

    def row(self, layer: int, step: int, steps: int, heads: int | None) -> str:
        """Return the letters of a layer's heads; heads=None takes any number of them."""
        part = self.rows[part_of(step, steps, self.begins)] if self._by_part else self.rows
        return layer_row(cast(Layers, part), layer, heads, "table", "letter")

    def check(self, known: Known) -> None:
        """Raise unless each sparse layer has a row that fits, and each of its methods fits."""
        # a number of steps that is unknown may have any part
        steps = known.steps or range(1000)
        parts = {part_of(step, steps.stop, self.begins): step for step in steps}
        used = "".join(
            self.row(layer, step, steps.stop, known.heads)
            for step in parts.values()
            for layer in known.layers
        )
        for letter, method, _ in self.methods:
            if letter in used:
                total = steps.stop if known.steps else None
                always = method.with_schedule(Schedule())
                always.check(max(known.layers) + 1, None, total, known.grid)

    def groups(self, x: QKV, ctx: Context) -> tuple[Group, ...]:
        """Return the groups of a call with their plans, once per call."""
        return ctx.once(("groups", self), lambda: tuple(self._groups(x, ctx)))

    def _groups(self, x: QKV, ctx: Context) -> Iterator[Group]:
        if ctx.causal:
            raise ArgumentError("mixed methods are for videos and images, not for causal attention")
        count = x.q.shape[1]
        total, mine = ctx.held(count)
        row = self.row(ctx.layer, ctx.step, ctx.steps, total)[mine]
        for letter, method, _ in self.methods:
            heads = tuple(h for h, c in enumerate(row) if c == letter)
            if heads:
                # what a method remembers of other heads is of no use to these
                state = ctx.state.setdefault((letter, heads), {})
                own = replace(ctx, heads=None, state=state, cache={})
                part = x if len(heads) == count else QKV(*(take(t, heads, count) for t in x))
                yield Group(heads, method, part, _plan(method, part, own), own)


@dataclass(frozen=True)
class Apart:
    """Arrange the heads of each group as their method does."""

    heads: ByHead

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        groups = self.heads.groups(x, ctx)
        if len(groups) == 1:
            return groups[0].plan.layout
        sides = ([g.plan.layout[i] for g in groups] for i in range(2))
        return Layout(*(_side_by_side(groups, side) for side in sides))


@dataclass(frozen=True)
class Chosen:
    """Score by the choice that each group's method has made: its levels, 0 for padding.

    Empty rows repeat the last one, so that a row keeps nothing only where its head is skipped.
    """

    heads: ByHead

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        groups, (rows, cols) = self.heads.groups(x, ctx), layout
        levels = []
        for group in groups:
            q, kv = group.plan.layout
            level = group.plan.level[..., : q.video, : kv.video]
            level = F.pad(level, (0, cols.video - kv.video))
            more = level[..., -1:, :].expand(-1, -1, rows.video - q.video, -1)
            levels.append(torch.cat([level, more], -2) if more.shape[-2] else level)
        return _in_order(groups, levels).float()


@dataclass(frozen=True)
class AsChosen:
    """Keep the levels that the score holds."""

    def capacity(self, columns: int) -> int | None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        return score.to(torch.int8)


@dataclass(frozen=True)
class Together:
    """Compute each group by its method; the plan of all is not read."""

    heads: ByHead

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        groups = self.heads.groups(x, ctx)
        outs = [group.method.compute(group.x, group.plan, group.ctx) for group in groups]
        for group in groups:
            if "kernel" in group.ctx.cache:
                ctx.cache["kernel"] = group.ctx.cache["kernel"]
        return _in_order(groups, outs)


def part_of(step: int, steps: int, begins: tuple[float, ...]) -> int:
    """Return the number of the part of a generation that a step is in."""
    # the small term undoes products such as 0.1 * 30 = 3.0000000000000004
    return sum(step >= begin * steps - 1e-6 for begin in begins)


def is_dense(method: Method) -> bool:
    """Tell whether a method is dense attention."""
    return isinstance(method.compute, Dense)


def _plan(method: Method, x: QKV, ctx: Context) -> Plan:
    """Return the plan of a method; that of dense attention needs no score."""
    if not is_dense(method):
        return method.plan(x, ctx)
    layout = method.arrange(x, ctx)
    shape = (*x.q.shape[:2], layout.q.count, layout.kv.count)
    return Plan(layout, torch.ones(shape, dtype=torch.int8, device=x.q.device))


def take(x: Tensor, heads: tuple[int, ...], count: int) -> Tensor:
    """Return some of `count` query heads, or of the key heads [B, Hkv, S, D] that they attend to.

    Neighbours are a view.
    """
    if x.shape[1] != count:
        heads = tuple(h * x.shape[1] // count for h in heads)
    if heads == tuple(range(heads[0], heads[0] + len(heads))):
        return x[:, heads[0] : heads[0] + len(heads)]
    return x.index_select(1, constant(heads, torch.int64, str(x.device)))


def _in_order(groups: tuple[Group, ...], tensors: list[Tensor]) -> Tensor:
    """Return the groups' tensors [B, h, ...] as one, its heads in their order [B, H, ...]."""
    heads = [h for group in groups for h in group.heads]
    every = tensors[0] if len(tensors) == 1 else torch.cat(tensors, 1)
    if heads == sorted(heads):
        return every
    place = tuple(sorted(range(len(heads)), key=heads.__getitem__))
    return every.index_select(1, constant(place, torch.int64, str(every.device)))


def _side_by_side(groups: tuple[Group, ...], sides: list[Blocks]) -> Blocks:
    """Return one cut for all heads: shorter ones are padded with empty blocks, text last."""
    video = max(blocks.video for blocks in sides)
    text = max(blocks.text_blocks for blocks in sides)
    device = groups[0].x.q.device
    batch = max(b.order.shape[0] if b.order is not None else 1 for b in sides)
    batch = max(batch, *(b.offsets.shape[0] if b.offsets is not None else 1 for b in sides))
    orders, bounds = [], []
    for group, blocks in zip(groups, sides, strict=True):
        heads = len(group.heads)
        order = blocks.order
        if order is None:
            order = torch.arange(blocks.length, device=device)[None, None]
        orders.append(_each(order, batch, heads))
        own = blocks.bounds(device, heads)
        head, tail = own[..., : blocks.video + 1], own[..., blocks.video + 1 :]
        head = torch.cat([head, head[..., -1:].expand(*head.shape[:-1], video - blocks.video)], -1)
        more = own[..., -1:].expand(*own.shape[:-1], text - blocks.text_blocks)
        bounds.append(_each(torch.cat([head, tail, more], -1), batch, heads))
    moved = any(blocks.order is not None for blocks in sides)
    return Blocks(
        sides[0].length,
        max(blocks.size for blocks in sides),
        video + text,
        _in_order(groups, orders) if moved else None,
        _in_order(groups, bounds),
        text,
        max(blocks.text_tokens for blocks in sides),
    )


def _each(x: Tensor, batch: int, heads: int) -> Tensor:
    """Return x [B|1, h|1 or groups of h, n] with one row for each batch element and head."""
    if x.shape[1] not in (1, heads):
        x = x.repeat_interleave(heads // x.shape[1], 1)
    return x.expand(batch, heads, -1)
