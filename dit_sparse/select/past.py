"""Budgets that grow with the past of a row."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from dit_sparse.core import Context, Layout
from dit_sparse.kernels.lists import top_blocks
from dit_sparse.parameters import check_share, quota


@dataclass(frozen=True)
class CausalShare:
    """Each row keeps its k best blocks, k such that about the share `keep` of the past is kept.

    k = max(1, floor((1 - sqrt(1 - keep)) * N)): a row of fewer blocks keeps all, so that the
    triangle of N rows keeps the share keep of its blocks. Used by SeerAttention.
    """

    keep: float

    def __post_init__(self) -> None:
        check_share("ratio", self.keep)

    def capacity(self, columns: int) -> int:
        return quota(1 - sqrt(1 - self.keep), columns)

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        return top_blocks(score, self.capacity(score.shape[-1]), impl=ctx.impl)


@dataclass(frozen=True)
class WithinFactor:
    """Each row keeps the blocks of score >= ln(min(1, factor / S)), S keys; "not below": NaN shows.

    prefill, decode: the factor for several queries and for a single one; 0 keeps every block. Up to
    `factor` keys, a block must hold a query's largest logit so far. Used by BLASST.
    """

    prefill: float
    decode: float

    def capacity(self, columns: int) -> None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        hidden = score == float("-inf")
        return (~(score < self.edge_of(layout)) & ~hidden).to(torch.int8)

    def edge_of(self, layout: Layout) -> float:
        """Return that logarithm, -inf for a factor of 0."""
        factor = self.decode if layout.q.length == 1 else self.prefill
        return log(min(1.0, factor / layout.kv.length)) if factor else float("-inf")
