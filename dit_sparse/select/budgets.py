"""Budgets counted in key tokens: those of a top-p rule, spent by another score, or a share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.core import Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.select import budget_classes
from dit_sparse.parameters import check_share, quota


@dataclass(frozen=True)
class TopPBudget:
    """Each row keeps its best blocks until they hold as many tokens as a top-p prefix would.

    budget_c: the tokens of the shortest prefix of falling centroid mass that reaches top_p, and of
    max(1, floor(min_keep * N)) blocks at least; the block that crosses the budget is kept. The mass
    is the one a score stage left in ctx.cache. Used by SVG-EAR.
    """

    top_p: float = 0.85
    min_keep: float = 0.0

    def __post_init__(self) -> None:
        check_share("top_p", self.top_p)
        check_share("min_keep", self.min_keep, zero="one block")

    def capacity(self, columns: int) -> int | None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        mass = ctx.cache.get("centroid mass")
        if mass is None:
            raise ArgumentError(
                "select=TopPBudget() needs the centroid mass that score=ProbedError() or "
                "CentroidMass() leaves in ctx.cache; this score stage left none"
            )
        least, sizes = quota(self.min_keep, mass.shape[-1]), layout.kv.video_sizes(score)
        # top_p = 1 means all, whatever the rounding of sums
        goal = self.top_p * mass.sum(-1, keepdim=True) if self.top_p < 1 else (float("inf"),)
        prefix = budget_classes(mass, goal, mass, floors=(least,), impl=ctx.impl) == 0
        budget = (prefix * sizes).sum(-1, keepdim=True)
        kept = budget_classes(score, budget, sizes, impl=ctx.impl) == 0
        return (kept & (sizes > 0)).to(torch.int8)


@dataclass(frozen=True)
class TokenQuota:
    """Each row keeps its best blocks, as many as come nearest to the share `keep` of all tokens.

    At least one; blocks without tokens never. Used by SVG2 and SVG-EAR at a fixed density.
    """

    keep: float

    def __post_init__(self) -> None:
        check_share("keep", self.keep)

    def capacity(self, columns: int) -> int | None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        sizes = layout.kv.video_sizes(score)
        budget = self.keep * sizes.sum(-1, keepdim=True)
        over = budget_classes(score, budget, sizes, impl=ctx.impl) == 0
        under = budget_classes(score, budget, sizes, inclusive=True, impl=ctx.impl) == 0
        more, less = ((kept * sizes).sum(-1, keepdim=True) for kept in (over, under))
        kept = torch.where((less > 0) & (budget - less <= more - budget), under, over)
        return (kept & (sizes > 0)).to(torch.int8)
