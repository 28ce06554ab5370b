"""Keep the likeliest blocks, a floor of them in any case, and those that touch the row's own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.constants import made_once
from dit_sparse.core import Blocks, Context, Grid, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.select import budget_classes
from dit_sparse.parameters import check_share, quota

NEIGHBOURS = ("union", "within", "none")


@dataclass(frozen=True)
class FloorTopP:
    """Each row keeps its best blocks until their share passes p_remain, at least keep * N of them.

    The score must be shares of a whole row: what it lacks to 1 is the text's, which is ranked as
    one more block (and is exact in any case). keep=1 keeps every block.
    neighbours: "union" adds the blocks that touch the row's own in space and time (any voxel of
    one in the 26-neighbourhood of a voxel of the other, itself included); "within" ranks them
    first instead, the own block before all, so that the budget holds; "none" ignores them. Without
    a grid the neighbours are those of the sequence.
    first_frame: the blocks that hold tokens of frame 0 count as neighbours of each other.
    Used by Rectified SpaAttn.
    """

    keep: float
    p_remain: float = 0.3
    neighbours: str = "union"
    first_frame: bool = False

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        check_share("p_remain", self.p_remain, zero="keep alone counts")
        if self.neighbours not in NEIGHBOURS:
            raise ArgumentError(
                f"neighbours={self.neighbours!r} must be one of {', '.join(NEIGHBOURS)}"
            )

    def capacity(self, columns: int) -> int | None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        n, device = score.shape[-1], score.device
        if self.keep == 1:
            return torch.ones_like(score, dtype=torch.int8)
        near, share = _neighbours(layout, ctx.grid, self, device), score
        if layout.kv.text_tokens:
            text = (1 - score.sum(-1, keepdim=True)).clamp(min=0)
            share = torch.cat((score, text), -1)
        rank = share
        if near is not None and self.neighbours == "within":
            # a share is at most 1: the own block comes first, then its neighbours
            rank = share + 2 * F.pad(near, (0, share.shape[-1] - n))
        least = (quota(self.keep, n),)
        past = budget_classes(rank, (self.p_remain,), share, floors=least, impl=ctx.impl)
        level = (past[..., :n] == 0).view(torch.int8)
        if near is not None and self.neighbours == "union":
            level = level.masked_fill(near > 0, 1)
        if near is None and layout.kv.text_tokens:
            # the text may have used up the whole budget: one video block stays
            level = level.scatter(-1, score.argmax(-1, keepdim=True), 1)
        return level


def _neighbours(
    layout: Layout, grid: Grid | None, rule: FloorTopP, device: torch.device
) -> Tensor | None:
    """Return the neighbour table of a layout for a rule, None where it has none."""
    q, kv = layout
    if grid is None and q.video_tokens == kv.video_tokens:
        grid = Grid(1, 1, q.video_tokens)
    if rule.neighbours == "none" or grid is None:
        return None
    shared = all(b.order is None or b.order.shape[:2] == (1, 1) for b in layout)
    # orders that depend on the data are new at each call: not worth keeping
    make = _cached if shared else neighbour_table
    return make(q, kv, grid, rule.first_frame, str(device))


def neighbour_table(
    q: Blocks, kv: Blocks, grid: Grid, first_frame: bool = False, device: str = "cpu"
) -> Tensor:
    """Return which video blocks meet on the grid, int8 [B|1, H|1, M, N].

    2 where a voxel belongs to both, 1 where a voxel of one is among the 26 around a voxel of the
    other (or, with first_frame, both hold tokens of frame 0), else 0.
    """
    rows, cols = _voxels(q, grid, device), _voxels(kv, grid, device)
    lead = torch.broadcast_shapes(rows.shape[:2], cols.shape[:2])
    rows, cols = rows.expand(*lead, -1, -1, -1), cols.expand(*lead, -1, -1, -1)
    table = torch.zeros(*lead, q.video * kv.video, dtype=torch.int8, device=device)
    if first_frame and grid.frames > 1:
        # an image has one frame, which says nothing
        opens = [torch.zeros(*lead, b.video, dtype=torch.bool, device=device) for b in (q, kv)]
        for flag, ids in zip(opens, (rows, cols), strict=True):
            flag.scatter_(-1, ids[..., 0, :, :].flatten(2), True)
        table |= (opens[0][..., :, None] & opens[1][..., None, :]).flatten(2)
    steps, sides = sorted(product((-1, 0, 1), repeat=3)), grid.sides
    if q is kv:
        # of two opposite steps one is enough, for the table is symmetric
        steps = steps[: len(steps) // 2 + 1]
    # the step of length 0 comes last, for it writes the larger number
    for step in sorted(steps, key=any, reverse=True):
        here, there = (
            tuple(slice(max(0, s * d), n + min(0, s * d)) for d, n in zip(step, sides, strict=True))
            for s in (1, -1)
        )
        pair = rows[..., *here] * kv.video + cols[..., *there]
        table.scatter_(-1, pair.flatten(2), 1 if any(step) else 2)
    table = table.unflatten(-1, (q.video, kv.video))
    return torch.maximum(table, table.mT) if q is kv else table


def _voxels(blocks: Blocks, grid: Grid, device: str) -> Tensor:
    """Return the block of every voxel of the grid, int64 [B|1, H|1, frames, height, width].

    Voxels beyond the video blocks, which are exact anyway, go with the last of them.
    """
    video, order = grid.video, blocks.order
    ends = blocks.bounds(device)[..., 1 : blocks.video]
    place = torch.arange(video, dtype=ends.dtype, device=device)
    ids = torch.searchsorted(
        ends.contiguous(), place.expand(*ends.shape[:2], video).contiguous(), right=True
    )
    if order is not None:
        # arranged position -> voxel; text, counted first in some models, is no voxel
        voxel = order[..., :video] - (grid.text if grid.text_first else 0)
        lead = torch.broadcast_shapes(ids.shape[:2], voxel.shape[:2])
        voxel, ids = voxel.expand(*lead, video), ids.expand(*lead, video)
        ids = torch.empty_like(ids).scatter_(-1, voxel, ids)
    return ids.unflatten(-1, grid.sides)


_cached = made_once(16)(neighbour_table)
