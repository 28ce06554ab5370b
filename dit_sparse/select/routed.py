"""Budgets counted in key tokens: routed by error under the budget of a top-p rule, or fixed."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from dit_sparse.core import Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.select import budget_classes


@dataclass(frozen=True)
class Routed:
    """Each row keeps its best blocks until they hold as many tokens as a top-p prefix would.

    budget_c: the tokens of the shortest prefix of falling centroid mass that reaches top_p, and of
    max(1, floor(min_keep * N)) blocks at least; the block that crosses the budget is kept. The mass
    is the one a score stage left in ctx.cache. Used by SVG-EAR.
    """

    top_p: float = 0.85
    min_keep: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.top_p, int | float) and 0 < self.top_p <= 1):
            raise ArgumentError(f"top_p={self.top_p!r} must be above 0 and at most 1, e.g. 0.85")
        if not (isinstance(self.min_keep, int | float) and 0 <= self.min_keep <= 1):
            raise ArgumentError(f"min_keep={self.min_keep!r} must lie between 0 and 1, e.g. 0.1")

    def capacity(self, columns: int) -> int | None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        mass = ctx.cache.get("centroid mass")
        if mass is None:
            raise ArgumentError(
                "select=Routed() needs the centroid mass that score=ProbedError() or "
                "CentroidMass() leaves in ctx.cache; this score stage left none"
            )
        # the small term undoes products such as 0.29 * 100 = 28.999...
        least = max(1, floor(self.min_keep * mass.shape[-1] + 1e-6))
        sizes = _sizes(layout, score)
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
        if not (isinstance(self.keep, int | float) and 0 < self.keep <= 1):
            raise ArgumentError(
                f"keep={self.keep!r} must be above 0 and at most 1, e.g. 0.25 (0: a top-p budget)"
            )

    def capacity(self, columns: int) -> int | None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        sizes = _sizes(layout, score)
        budget = self.keep * sizes.sum(-1, keepdim=True)
        over = budget_classes(score, budget, sizes, impl=ctx.impl) == 0
        under = budget_classes(score, budget, sizes, inclusive=True, impl=ctx.impl) == 0
        more, less = ((kept * sizes).sum(-1, keepdim=True) for kept in (over, under))
        kept = torch.where((less > 0) & (budget - less <= more - budget), under, over)
        return (kept & (sizes > 0)).to(torch.int8)


def _sizes(layout: Layout, score: Tensor) -> Tensor:
    """Return the tokens of each key block, [B|1, H|1, 1, N], in the score's dtype."""
    sizes = layout.kv.sizes(score.device, score.shape[1])[..., : layout.kv.video]
    return sizes.to(score.dtype)[..., None, :]
