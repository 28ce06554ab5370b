"""Keep the blocks of largest score until their mass reaches a share of the row's."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from dit_sparse.core import Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.select import budget_classes


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
        if not (isinstance(self.top_p, int | float) and 0 < self.top_p <= 1):
            raise ArgumentError(
                f"top_p={self.top_p!r} must be above 0 and at most 1, e.g. top_p=0.9"
            )
        if not (isinstance(self.min_keep, int | float) and 0 <= self.min_keep <= 1):
            raise ArgumentError(
                f"min_keep={self.min_keep!r} must be a share of the blocks from 0 to 1"
            )

    def capacity(self, columns: int) -> None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        if self.top_p == 1:
            return (score != float("-inf")).to(torch.int8)
        mass = score.clamp(min=0)
        least = max(1, floor(self.min_keep * score.shape[-1] + 1e-6))
        past = budget_classes(
            score,
            self.top_p * mass.sum(-1, keepdim=True),
            mass,
            floors=(least,),
            impl=ctx.impl,
        )
        # "not below": NaN stays, so that it shows
        return ((past == 0) & ~(score <= 0)).to(torch.int8)
