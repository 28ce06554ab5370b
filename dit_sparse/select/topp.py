"""Keep the blocks of largest score until their mass reaches a share of the row's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.core import Context, Layout
from dit_sparse.kernels.select import budget_classes
from dit_sparse.parameters import check_share, quota


@dataclass(frozen=True)
class TopP:
    """Each row keeps its smallest best prefix whose mass reaches top_p, the crossing block too.

    score: [B, H, M, N] probabilities (any non-negative weights: top_p is a share of the row's sum,
    so blocks that a causal mask hides take no part). At least max(1, floor(min_keep * N)) blocks
    are kept, as far as there are any of positive score: -inf and 0 mark blocks never to be chosen.
    top_p = 1 is the dense limit and keeps a score of 0 as well, for it may be an underflow.
    Used by SVG2.
    """

    top_p: float
    min_keep: float = 0.0

    def __post_init__(self) -> None:
        check_share("top_p", self.top_p)
        check_share("min_keep", self.min_keep, zero="one block")

    def capacity(self, columns: int) -> None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        if self.top_p == 1:
            return (score != float("-inf")).to(torch.int8)
        mass = score.clamp(min=0)
        goal, least = self.top_p * mass.sum(-1, keepdim=True), quota(self.min_keep, score.shape[-1])
        past = budget_classes(score, goal, mass, floors=(least,), impl=ctx.impl)
        # "not below": NaN stays, so that it shows
        return ((past == 0) & ~(score <= 0)).to(torch.int8)
