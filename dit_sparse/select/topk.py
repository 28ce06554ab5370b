"""Keep the blocks of largest score, a fixed share of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from dit_sparse.core import Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.lists import top_blocks
from dit_sparse.kernels.select import head_kth


def check_keep(keep: float) -> None:
    """Raise when `keep`, a share of the blocks, lies outside (0, 1]."""
    if not (isinstance(keep, int | float) and 0 < keep <= 1):
        raise ArgumentError(f"keep={keep!r} must be above 0 and at most 1, e.g. keep=0.25")


@dataclass(frozen=True)
class TopK:
    """Each row keeps its max(1, floor(keep * N)) best blocks. Used by PISA, DraftAttention, SLA."""

    keep: float

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def capacity(self, columns: int) -> int:
        # the small term undoes products such as 0.29 * 100 = 28.999...
        return max(1, floor(self.keep * columns + 1e-6))

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        return top_blocks(score, self.capacity(score.shape[-1]), impl=ctx.impl)


@dataclass(frozen=True)
class HeadTopK:
    """Each head keeps about keep * M * N blocks of its whole map, spread unevenly over the rows.

    The k = floor((1 - keep) * M * N) smallest scores of a head are dropped, save those equal to
    the largest of them; each row keeps its best block in any case. Used by DraftAttention.
    """

    keep: float

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def capacity(self, columns: int) -> int | None:
        return columns if self.keep == 1 else None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        if ctx.causal:
            raise ArgumentError(
                "one threshold for a whole head depends on future tokens; causal attention needs a "
                "budget per row, e.g. rule='row'"
            )
        blocks = score.shape[-2] * score.shape[-1]
        drop = floor((1 - self.keep) * blocks + 1e-6)
        if drop == 0:
            return torch.ones_like(score, dtype=torch.int8)
        # the largest dropped score
        threshold = head_kth(score, blocks - drop + 1, impl=ctx.impl)[..., None, None]
        # "not below" instead of "at least": a row of NaN keeps its blocks, so that the NaN shows
        worse = (score < threshold) & (score < score.amax(-1, keepdim=True))
        return (~worse).to(torch.int8)
