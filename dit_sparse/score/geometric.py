"""Scores from the places of the blocks alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, zip_longest

import torch
from torch import Tensor

from dit_sparse.constants import constant, golden, made_once
from dit_sparse.core import QKV, Context, Layout


@dataclass(frozen=True)
class Geometric:
    """Minus the distance |i - j| of query block i and key block j on the arranged axis, [B,H,M,N].

    first_frame: the key blocks of the first frame's length at the axis' start are at distance 0
    from everything. modes: (ctx, heads) -> one letter per head; in heads of mode V the score is
    minus the rank of the key block in one list for all queries: blocks of the first frame and of
    the rest by turns, each group in an order of which every beginning is evenly spaced.
    Used by SVG (first_frame) and Sparse-vDiT (modes).
    """

    first_frame: bool = False
    modes: Callable[[Context, int], str] | None = None

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        heads, device = x.q.shape[1], str(x.q.device)
        m, n, frame = layout.q.video, layout.kv.video, 0
        if ctx.grid is not None and ctx.grid.frames > 1:
            frame = -(-ctx.grid.height * ctx.grid.width // layout.kv.size)
        score = _near(m, n, frame if self.first_frame else 0, device)
        row = self.modes(ctx, heads) if self.modes else ""
        if "V" in row:
            striped = constant(tuple(mode == "V" for mode in row), torch.bool, device)
            score = torch.where(striped[:, None, None], _listed(n, frame, device), score)
        return score.expand(x.q.shape[0], heads, m, n)


def priority(n: int, frame: int) -> list[int]:
    """Return the blocks 0..n-1 in the order in which stripes take them.

    Multiples of the golden ratio spread evenly: so do the blocks whose multiple is smallest.
    """
    first, rest = (sorted(blocks, key=golden) for blocks in (range(frame), range(frame, n)))
    return [j for j in chain.from_iterable(zip_longest(first, rest)) if j is not None]


@made_once(16)
def _near(m: int, n: int, first: int, device: str) -> Tensor:
    """Return -|i - j|, 0 in the first columns, [1, 1, m, n] float32."""
    rows, cols = (torch.arange(s, dtype=torch.float32, device=device) for s in (m, n))
    near = -(rows[:, None] - cols).abs()
    near[:, :first] = 0
    return near[None, None]


@made_once(16)
def _listed(n: int, frame: int, device: str) -> Tensor:
    """Return minus the place of each key block in the list of stripes, [n] float32."""
    order = torch.tensor(priority(n, frame))
    return -torch.argsort(order).to(torch.float32).to(device)
