"""Blocks that are kept whatever their score: the query's own, the first, and what a stage named."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.constants import constant
from dit_sparse.core import Context, Known, Layout, Select, layer_row
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.lists import top_blocks
from dit_sparse.kernels.select import budget_classes
from dit_sparse.parameters import check_count, check_share


@dataclass(frozen=True)
class ForcedTopP:
    """Each row keeps its own and the first block, then the best ones until their mass is top_p.

    score: [B, H, M, N] mass, -inf where hidden. The forced blocks count first; the block that
    crosses the share is kept. top_p = 1 keeps every visible block. Forced are blocks of causal
    attention only. table: one share per head instead, of each layer. Used by XAttention.
    """

    top_p: float
    table: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        check_share("tau", self.top_p)
        for row in self.table:
            for share in row:
                check_share("heads", share)

    def check(self, known: Known) -> None:
        """Raise unless every sparse layer has a row with a share for each head."""
        for layer in known.layers if self.table else ():
            layer_row(self.table, layer, known.heads, "heads", "share")

    def capacity(self, columns: int) -> None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        visible = score != float("-inf")
        if self.top_p == 1 and not self.table:
            return visible.to(torch.int8)
        share: Tensor | float = self.top_p
        if self.table:
            total, mine = ctx.held(score.shape[1])
            row = layer_row(self.table, ctx.layer, total, "heads", "share")[mine]
            share = constant(row, score.dtype, str(score.device))[:, None, None]
        mass, rank = score.clamp(min=0), score
        forced = torch.zeros_like(visible)
        if ctx.causal:
            forced = visible & layout.own(score.device)
            forced[..., 0] = visible[..., 0]
            rank = score.masked_fill(forced & ~score.isnan(), float("inf"))
        goal = share * mass.sum(-1, keepdim=True)
        kept = budget_classes(rank, goal, mass, impl=ctx.impl) == 0
        # "not below": NaN stays, so that it shows
        return (kept & ~(score <= 0) | forced).to(torch.int8)


@dataclass(frozen=True)
class ForcedTopK:
    """Each row keeps its own block and the best others, k in all, as far as there are visible ones.

    others: k counts the others alone. Used by MoBA, block top-k (others), HyLRA.
    """

    k: int
    others: bool = False

    def __post_init__(self) -> None:
        check_count("k", self.k)

    def capacity(self, columns: int) -> int:
        return min(columns, self.k + self.others)

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        own = layout.own(score.device)
        rank = score.masked_fill(own & ~score.isnan(), float("inf"))
        return top_blocks(rank, self.capacity(score.shape[-1]), impl=ctx.impl)


@dataclass(frozen=True)
class AndForced:
    """What `select` keeps, and the blocks that a stage before left in ctx.cache as "forced".

    Those are bool [B|1, H|1, M, N]. Used by PBS-Attn.
    """

    select: Select

    def capacity(self, columns: int) -> None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        forced = ctx.cache.get("forced")
        if forced is None:
            raise ArgumentError(
                "select=AndForced(...) needs the blocks that a score stage such as "
                "EarlierSegments() leaves in ctx.cache as 'forced'; this one left none"
            )
        return self.select(score, layout, ctx).masked_fill(forced, 1)


@dataclass(frozen=True)
class AtLeast:
    """Each row keeps the blocks of score >= edge; "not below", so that NaN shows.

    Used by AnchorAttention, MInference, SeerAttention.
    """

    edge: float

    def capacity(self, columns: int) -> None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        hidden = score == float("-inf")
        return (~(score < self.edge) & ~hidden).to(torch.int8)
