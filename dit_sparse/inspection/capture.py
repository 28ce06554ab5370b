"""What each head looks at and what a method keeps of it, as small arrays.

    camera = Camera(Where(layers=(3,), heads=(0, 1), steps=(6,)), patches=((4, 8, 8),))
    with watching(pipe, camera):
        pipe("a red circle moves right")
    camera.views, camera.readings

Maps are drawn from sampled query rows: their cost is a few rows for each line of a map, never all
queries times all keys. The arrays are numpy's, on the CPU, and no larger than what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dit_sparse.core import QKV, Blocks, Context, Grid, Layout, Plan
from dit_sparse.errors import ArgumentError
from dit_sparse.integrations.session import Call
from dit_sparse.quality.probe import read, row_level, token_blocks, weights

CELLS = 96  # lines and columns of a map at most
SAMPLES = 2  # query rows for each line of a map

Patch = tuple[int, int, int]  # frame, row, column of a token


@dataclass(frozen=True)
class Where:
    """Which calls are looked into; None = all of them.

    first: how many heads where `heads` is None; None = all. branch: of the CFG branches; element:
    of the batch, -1 = the last, which has the prompt where both branches are in one batch.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None
    first: int | None = None
    branch: int = 0
    element: int = -1

    def wants(self, call: Call) -> bool:
        """Tell whether a call is one of them."""
        here = self.layers is None or call.layer in self.layers
        now = self.steps is None or call.step in self.steps
        return here and now and call.branch == self.branch


class Map(NamedTuple):
    """Attention and choice by cells of queries and keys, float32 [rows, columns] each.

    mass: share of a row's attention in a column, times the number of columns: 1 = uniform. exact,
    pooled: share of the query-key pairs that are computed so; the remainder stands for the rest.
    rows, columns: the first token of each cell and the end, in the order of the map. marks: where
    frames (or the text) begin, as tokens.
    """

    mass: np.ndarray
    exact: np.ndarray
    pooled: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    marks: tuple[int, ...] = ()


class Look(NamedTuple):
    """What one patch of the video looks at.

    mass: [F, H, W] its attention, times the number of tokens: 1 = uniform. level: [F, H, W] int8 of
    the plan. text: the share of its attention on text tokens.
    """

    patch: Patch
    mass: np.ndarray
    level: np.ndarray
    text: float


class Numbers(NamedTuple):
    """One head at one call: error of its output, kept mass of its attention, density."""

    error: float
    recall: float
    density: float


@dataclass(frozen=True)
class View:
    """One head at one call. own: in the method's order and blocks; video: frame by frame."""

    part: str
    layer: int
    head: int
    step: int
    grid: Grid | None
    numbers: Numbers
    own: Map
    video: Map
    looks: tuple[Look, ...] = ()

    @property
    def name(self) -> str:
        """A name that sorts by layer, head and step, unique within one transformer."""
        return f"layer{self.layer:02d}-head{self.head:02d}-step{self.step:02d}"


class Reading(NamedTuple):
    """Numbers of all heads of one call, float32 [H] each: error, kept mass, density."""

    error: np.ndarray
    recall: np.ndarray
    density: np.ndarray


@dataclass
class Camera:
    """Collects views of chosen calls, and readings of all heads there; give it to `watching`.

    patches: whose attention is drawn on the video; None = one in the centre and one towards a
    corner. cells: lines and columns of a map at most. most: views at most.
    """

    where: Where = Where()
    patches: tuple[Patch, ...] | None = None
    cells: int = CELLS
    most: int | None = None
    views: list[View] = field(default_factory=list)
    readings: dict[tuple[str, int, int], Reading] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, call: Call) -> None:
        place = call.part, call.layer, call.step
        # a layer that is called more than once shows its first call
        if not self.where.wants(call) or place in self.readings:
            return
        batch, count = call.x.q.shape[:2]
        element = range(batch)[self.where.element]
        heads = self.where.heads
        heads = range(count)[: self.where.first] if heads is None else heads
        if max(heads) >= count:
            raise ArgumentError(f"head {max(heads)} is not there: they are 0 to {count - 1}")
        if self.most is not None and len(self.views) + len(heads) > self.most:
            raise ArgumentError(f"more than {self.most} views; choose fewer layers, heads or steps")
        found = read(call.x, call.plan, call.out, call.ctx)
        error, recall = (t[element].float().cpu().numpy() for t in (found.error, found.exact))
        plans = [of_head(call.plan, element, head) for head in range(count)]
        density = np.array([float(plan.density()) for plan in plans], np.float32)
        self.readings[place] = Reading(error, recall, density)
        kv_heads = call.x.k.shape[1]
        for head in heads:
            kv = head * kv_heads // count
            places = zip(call.x, (head, kv, kv), strict=True)
            x = QKV(*(t[element, h][None, None] for t, h in places))
            numbers = Numbers(*(float(values[head]) for values in (error, recall, density)))
            self.views.append(self._view(call, x, plans[head], head, numbers))

    def _view(self, call: Call, x: QKV, plan: Plan, head: int, numbers: Numbers) -> View:
        """Return the view of one head; x and plan: of it alone."""
        ctx = call.ctx
        patches = default_patches(ctx.grid) if self.patches is None else self.patches
        return View(
            call.part, call.layer, head, call.step, ctx.grid, numbers,
            own_map(x, plan, ctx, self.cells), video_map(x, plan, ctx, self.cells),
            tuple(look(x, plan, ctx, patch) for patch in patches),
        )  # fmt: skip


def default_patches(grid: Grid | None) -> tuple[Patch, ...]:
    """Return a patch in the centre of the video and one of the same frame towards a corner."""
    if grid is None:
        return ()
    frames, height, width = grid.sides
    centre = frames // 2, height // 2, width // 2
    return tuple(dict.fromkeys([centre, (frames // 2, height // 5, width // 5)]))


def of_head(plan: Plan, element: int, head: int) -> Plan:
    """Return the plan of one batch element and head, with axes of size 1 in their places."""
    heads = plan.level.shape[1]

    def pick(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        b, h = min(element, t.shape[0] - 1), head * t.shape[1] // heads
        return t[b : b + 1, h : h + 1]

    def one(blocks: Blocks) -> Blocks:
        return replace(blocks, order=pick(blocks.order), offsets=pick(blocks.offsets))

    level = pick(plan.level)
    assert level is not None
    return Plan(Layout(one(plan.layout.q), one(plan.layout.kv)), level, plan.causal)


def own_map(x: QKV, plan: Plan, ctx: Context, cells: int = CELLS) -> Map:
    """Return the map in the order and the blocks of a plan of one head.

    Where there are more blocks than cells, neighbours share one.
    """
    device = x.q.device
    edges = [_grouped(b.bounds(device)[0, 0].long(), cells) for b in plan.layout]
    orders = [None if b.order is None else b.order[0, 0] for b in plan.layout]
    return _map(x, plan, ctx, edges, orders)


def video_map(x: QKV, plan: Plan, ctx: Context, cells: int = CELLS) -> Map:
    """Return the map of one head in the given token order, frame after frame.

    Every frame is cut into as many equal cells as fit, text into cells of its own.
    """
    edges, marks = _frames(ctx.grid, x.q.shape[2], cells)
    keys = edges if x.k.shape[2] == x.q.shape[2] else _even(0, x.k.shape[2], cells)
    there = [torch.tensor(e, device=x.q.device) for e in (edges, keys)]
    return _map(x, plan, ctx, there, [None, None])._replace(marks=marks)


def look(x: QKV, plan: Plan, ctx: Context, patch: Patch) -> Look:
    """Return what the token at (frame, row, column) of one head looks at."""
    grid = ctx.grid
    if grid is None or not all(0 <= p < n for p, n in zip(patch, grid.sides, strict=True)):
        sides = "no grid" if grid is None else " x ".join(map(str, grid.sides))
        raise ArgumentError(
            f"patch {patch} is not in the token grid, frames x rows x columns: {sides}"
        )
    first = grid.text if grid.text_first else 0
    token = first + (patch[0] * grid.height + patch[1]) * grid.width + patch[2]
    rows = torch.tensor([token], device=x.q.device)
    mass = torch.cat([p for _, p in weights(x, rows, ctx)], 2)[0, 0, 0]
    level = _token_level(x, plan, rows)[0]
    video = slice(first, first + grid.video)
    share = mass[video] * len(mass)
    return Look(
        patch,
        share.view(grid.sides).float().cpu().numpy(),
        level[video].view(grid.sides).cpu().numpy(),
        float(1 - mass[video].sum()) if grid.text else 0.0,
    )


def _map(x: QKV, plan: Plan, ctx: Context, edges: list[Tensor], orders: list[Tensor | None]) -> Map:
    """Return the map of one head between edges [cells + 1] of its query and key axes.

    orders: the token at each place of an axis, None = the given order.
    """
    places, line = _sampled(edges[0])
    rows = places if orders[0] is None else orders[0][places]
    lines, columns = len(edges[0]) - 1, len(edges[1]) - 1
    sums = torch.zeros(3, lines, columns, device=x.q.device)
    for some, p in weights(x, rows, ctx):
        at, line = line[: len(some)], line[len(some) :]
        level = _token_level(x, plan, some)
        for total, values in zip(sums, (p[0, 0], level == 1, level > 1), strict=True):
            values = values if orders[1] is None else values[:, orders[1]]
            total.index_add_(0, at, _between(values.float(), edges[1]))
    taken = torch.bincount(_sampled(edges[0])[1], minlength=lines)[:, None].clamp(min=1)
    width = edges[1].diff().clamp(min=1)
    mass, exact, pooled = sums / taken
    per_token = mass / width * (edges[1][-1] - edges[1][0])
    shares = [t.cpu().numpy() for t in (per_token, exact / width, pooled / width)]
    first, second = (e.cpu().numpy() for e in edges)
    return Map(shares[0], shares[1], shares[2], first, second)


def _token_level(x: QKV, plan: Plan, rows: Tensor) -> Tensor:
    """Return the level of every key token for some query rows of one head, [R, Skv] int8."""
    ids = token_blocks(plan.layout.kv, (1, 1, x.k.shape[2]), x.k.device)[0, 0]
    level = row_level(x, plan, rows)[0, 0]
    # one spare block for tokens that are in none
    return torch.nn.functional.pad(level, (0, 1))[:, ids]


def _sampled(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return places spread over each cell, and the cells they are in, [R] each."""
    start, size = edges[:-1], edges.diff()
    line = torch.arange(len(start), device=edges.device)
    found = [(start + size * (2 * i + 1) // (2 * SAMPLES), line) for i in range(SAMPLES)]
    # an empty cell has no place
    pairs = [(place[size > 0], at[size > 0]) for place, at in found]
    return torch.cat([p for p, _ in pairs]), torch.cat([a for _, a in pairs])


def _between(values: Tensor, edges: Tensor) -> Tensor:
    """Return the sums of values [R, S] between edges [C + 1], [R, C]."""
    total = torch.nn.functional.pad(values.double().cumsum(-1), (1, 0))
    return total[:, edges].diff(dim=-1).float()


def _grouped(bounds: Tensor, cells: int) -> Tensor:
    """Return every n-th bound and the last, so that there are at most `cells` intervals."""
    blocks = len(bounds) - 1
    at = torch.arange(min(blocks, cells) + 1, device=bounds.device) * blocks // min(blocks, cells)
    return bounds[at]


def _frames(grid: Grid | None, tokens: int, cells: int) -> tuple[list[int], tuple[int, ...]]:
    """Return the edges of a map's cells in the given order, and where frames and text begin."""
    if grid is None or grid.tokens != tokens:
        return _even(0, tokens, cells), ()
    frame = grid.height * grid.width
    runs = list(_runs(grid))
    if grid.frames > cells:
        return _even(0, tokens, cells), ()
    each = max(1, cells // max(1, len(runs)))
    edges = [0]
    for start, end in runs:
        edges += _even(start, end, min(each, frame))[1:]
    return edges, tuple(start for start, _ in runs[1:])


def _runs(grid: Grid) -> Iterator[tuple[int, int]]:
    """Yield the first token and the end of the text and of each frame, in the given order."""
    frame, first = grid.height * grid.width, grid.text if grid.text_first else 0
    if grid.text_first and grid.text:
        yield 0, grid.text
    for number in range(grid.frames):
        yield first + number * frame, first + (number + 1) * frame
    if grid.text and not grid.text_first:
        yield grid.video, grid.tokens


def _even(start: int, end: int, cells: int) -> list[int]:
    """Return the edges of at most `cells` nearly equal cells between two places."""
    count = min(cells, end - start)
    return [start + (end - start) * i // count for i in range(count + 1)]
