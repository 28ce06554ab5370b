"""Each query chooses its key blocks from a pool of query-block pairs; its own block is certain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.core import Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.lists import top_blocks
from dit_sparse.kernels.select import budget_classes, head_budget, head_kth
from dit_sparse.parameters import check_share, quota

# scope -> the axes of [B, H, S, N] over which one choice is made
POOLS = {"head": (2, 3), "query": (3,), "block": (1, 2), "overall": (1, 2, 3)}


def check_scope(scope: str) -> None:
    """Raise when `scope` is not the name of a pool."""
    if scope not in POOLS:
        raise ArgumentError(f"scope={scope!r} must be one of {', '.join(map(repr, POOLS))}")


@dataclass(frozen=True)
class GateMass:
    """Own blocks, then the pairs of largest gate until they hold the share tau of a pool's mass.

    The mass of a pair is w = (g - min g) / (max g - min g) over its pool (all equal: w = 1), own
    pairs count. The pair that crosses tau, and its equals, are kept; tau >= 1 keeps every pair.
    scope: one pool per "head", per "query", per key "block" over all heads, or one "overall";
    always per sample. extra: a pool keeps its best other pair even when own ones alone reach tau.
    Used by VMoBA.
    """

    tau: float
    scope: str = "head"
    extra: bool = False

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if not (isinstance(self.tau, int | float) and self.tau >= 0):
            raise ArgumentError(f"tau={self.tau!r} must be a share of at least 0, e.g. tau=0.25")

    def capacity(self, columns: int) -> None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        if self.tau >= 1:
            return torch.ones_like(score, dtype=torch.int8)
        own, axes = _own(score, layout), POOLS[self.scope]
        low, high = score.amin(axes, keepdim=True), score.amax(axes, keepdim=True)
        # not divided by the range: the budget is a share in the same unit
        mass = score - torch.where(high == low, low - 1, low)
        total = mass.sum(axes, keepdim=True)
        mass.scatter_(3, own, 0)
        budget = mass.sum(axes, keepdim=True) - (1 - self.tau) * total
        if self.extra:
            budget = budget.clamp_(min=torch.finfo(budget.dtype).tiny)
        if self.scope == "query":
            dropped = budget_classes(mass, budget, mass, impl=ctx.impl) != 0
        else:
            edge = head_budget(_pooled(mass, self.scope), budget.flatten(1), impl=ctx.impl)
            dropped = mass < edge.view_as(budget)
        # "not below" instead of "at least": NaN scores keep their pairs, so that they show
        return dropped.logical_not_().view(torch.int8).scatter_(3, own, 1)


@dataclass(frozen=True)
class GateShare:
    """Own blocks, then the pairs of largest gate until a fixed share of each pool is kept.

    keep: the share, own pairs included, at least these; a pair counts once, whatever the size of
    its block. With keep 0: k = the mean number of pairs per query, at most all blocks; one for
    each of the partitions "1", "2", "3" that `cycle` gives to the layers in turn.
    scope: as in GateMass; "query" gives every query the same number. Used by VMoBA.
    """

    keep: float = 0.0
    k: tuple[int, int, int] = (2, 6, 18)
    cycle: str = "123"
    scope: str = "query"

    def __post_init__(self) -> None:
        check_scope(self.scope)
        check_share("keep", self.keep, zero="k blocks")
        if isinstance(self.k, list):  # TOML has no tuples
            object.__setattr__(self, "k", tuple(self.k))
        good = isinstance(self.k, tuple) and len(self.k) == 3
        if not good or not all(type(k) is int and k > 0 for k in self.k):
            raise ArgumentError(
                f"k={self.k!r} must be three counts of blocks per query, each at least 1, for the "
                "partitions 1, 2 and 3"
            )

    def capacity(self, columns: int) -> int | None:
        return columns if self.keep == 1 else None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        n = score.shape[3]
        k = min(n, self.k[int(self.cycle[ctx.layer % len(self.cycle)]) - 1])
        share = self.keep or k / n
        if share == 1:
            return torch.ones_like(score, dtype=torch.int8)
        own = _own(score, layout)
        score = score.scatter(3, own, float("inf"))
        pool = _pooled(score, self.scope)
        count = quota(share, n if self.scope == "query" else pool[0, 0].numel())
        if self.scope == "query":
            return top_blocks(score, count, impl=ctx.impl)
        edge = head_kth(pool, count, impl=ctx.impl)
        edge = edge[:, None, None] if self.scope == "block" else edge[..., None, None]
        return (score < edge).logical_not_().view(torch.int8).scatter_(3, own, 1)


def _own(score: Tensor, layout: Layout) -> Tensor:
    """Return each query's own block [B, H, S, 1] int64; queries and keys share one order."""
    ends = layout.kv.bounds(score.device)[0, 0, 1 : layout.kv.video + 1]
    position = torch.arange(score.shape[2], dtype=ends.dtype, device=score.device)
    own = torch.searchsorted(ends.contiguous(), position, right=True)
    return own[None, None, :, None].expand(*score.shape[:3], 1)


def _pooled(x: Tensor, scope: str) -> Tensor:
    """Return [B, H, S, N] with one pool per head: [B, pools, S', N']."""
    if scope == "overall":
        return x.flatten(1, 2)[:, None]
    return x.movedim(3, 1).flatten(2)[..., None] if scope == "block" else x
