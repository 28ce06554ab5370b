"""Keep the blocks of largest score, a fixed share of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.core import Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.lists import edge_lists, top_lists
from dit_sparse.kernels.select import head_kth
from dit_sparse.parameters import check_share, quota


@dataclass(frozen=True)
class TopK:
    """Each row keeps its max(1, floor(keep * N)) best blocks.

    Used by PISA, SLA, DraftAttention (rule="row"), dense.
    """

    keep: float

    def __post_init__(self) -> None:
        check_share("keep", self.keep)

    def capacity(self, columns: int) -> int:
        return quota(self.keep, columns)

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        choice = top_lists(score, self.capacity(score.shape[-1]), impl=ctx.impl)
        ctx.cache["choice"] = choice
        return choice[0]


@dataclass(frozen=True)
class HeadTopK:
    """Each head keeps about keep * M * N blocks of its whole map, spread unevenly over the rows.

    The k = floor((1 - keep) * M * N) smallest scores of a head are dropped, save those equal to
    the largest of them; each row keeps its best block in any case. Used by DraftAttention.
    """

    keep: float

    def __post_init__(self) -> None:
        check_share("keep", self.keep)

    def capacity(self, columns: int) -> int | None:
        return columns if self.keep == 1 else None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        if ctx.causal:
            raise ArgumentError(
                "one threshold for a whole head depends on future tokens; causal attention needs a "
                "budget per row, e.g. rule='row'"
            )
        blocks = score.shape[-2] * score.shape[-1]
        drop = quota(1 - self.keep, blocks, least=0)
        if drop == 0:
            return torch.ones_like(score, dtype=torch.int8)
        # the largest dropped score
        threshold = head_kth(score, blocks - drop + 1, impl=ctx.impl)
        choice = edge_lists(score, threshold, impl=ctx.impl)
        ctx.cache["choice"] = choice
        return choice[0]
