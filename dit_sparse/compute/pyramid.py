"""Blocks pooled by 2, 4 or 8: fewer key columns instead of none."""

from __future__ import annotations

from dataclasses import dataclass

from dit_sparse.arranged import Arranged, video_cut
from dit_sparse.compute.remainder import Remainder
from dit_sparse.core import Context, Plan
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.contract import Columns
from dit_sparse.kernels.pyramid import level_lists, pool_groups


@dataclass(frozen=True)
class Pyramid(Remainder):
    """A block of level 2, 3, 4 is replaced by the means of its groups of 2, 4, 8 tokens.

    A group of n real tokens is one key column with bias log n; groups do not cross blocks. The
    columns of all factors stand behind each other, and each query block lists the groups of
    `group` columns that it sees: size / 8 of them are a block of level 4, twice as many a block of
    level 3, and so on. Level 0 is dropped.
    factors: the pooled tokens' sizes that a plan may use. Used by PSA.
    """

    factors: tuple[int, ...] = (2, 4, 8)

    def __post_init__(self) -> None:
        if not set(self.factors) <= {2, 4, 8} or list(self.factors) != sorted(set(self.factors)):
            raise ArgumentError(f"factors={self.factors!r} must be some of 2, 4, 8, rising")

    def __call__(self, x: Arranged, plan: Plan, ctx: Context) -> tuple[Columns | None, None]:
        if not self.factors:
            return None, None
        blocks, factors, most = plan.layout.kv, self.factors, max(self.factors)
        n, tokens = blocks.video, blocks.video_tokens
        k, v, bias = pool_groups(
            x.k[:, :, :tokens], x.v[:, :, :tokens], video_cut(blocks), factors, impl=ctx.impl
        )
        pooled = ctx.once("pooled_blocks", dict)
        capacity, last = 0, 0
        for f in reversed(factors):
            # at most this many blocks up to this factor, each of as many runs more
            capacity += pooled.get(f, n) * (most // f - last)
            last = most // f
        capacity = min(capacity, n * (most // factors[0]))
        count, index = level_lists(plan.level[..., :n], factors, capacity, impl=ctx.impl)
        # columns of a run, the same for all factors
        group = -(-blocks.size // 8) * 8 // most
        return Columns(k, v, bias, count=count, index=index, group=group), None
