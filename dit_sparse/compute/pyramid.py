"""Blocks pooled by 2, 4 or 8: fewer key columns instead of none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.compute.remainder import Remainder
from dit_sparse.core import QKV, Blocks, Context, Plan
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.contract import Columns
from dit_sparse.kernels.lists import pack_lists


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

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> tuple[Columns | None, None]:
        if not self.factors:
            return None, None
        blocks, most = plan.layout.kv, max(self.factors)
        n, size = blocks.video, -(-blocks.size // 8) * 8
        # tokens of each pair, real or not: the first level of every other
        counts = _counts(blocks, size // 2, 2, x.k.device)
        bias = [
            counts.unflatten(-1, (-1, f // 2)).sum(-1).flatten(-2).float().log()
            for f in self.factors
        ]
        k, v = (self._pooled(t, blocks, size, counts) for t in x[1:])
        # groups of each factor per block; a level's blocks are expanded to their groups
        level = plan.level[..., :n]
        seen = [
            (level == f.bit_length())[..., None].expand(*level.shape, most // f).flatten(-2)
            for f in self.factors
        ]
        pooled = ctx.once("pooled_blocks", dict)
        capacity, last = 0, 0
        for f in reversed(self.factors):
            # at most this many blocks up to this factor, each of as many groups more
            capacity += pooled.get(f, n) * (most // f - last)
            last = most // f
        capacity = min(capacity, n * (most // self.factors[0]))
        count, index = pack_lists(torch.cat(seen, -1), capacity, impl=ctx.impl)
        columns = Columns(k, v, torch.cat(bias, -1), count=count, index=index, group=size // most)
        return columns, None

    def _pooled(self, x: Tensor, blocks: Blocks, size: int, counts: Tensor) -> Tensor:
        """Return the means of all factors behind each other, [B, Hkv, C, D] in x's dtype."""
        sums = _pairs(x, blocks, size)
        parts, counts = [], counts
        for factor in range(2, max(self.factors) + 1):
            if factor.bit_count() != 1:
                continue
            if factor > 2:
                sums = [s.unflatten(3, (-1, 2)).sum(4) for s in sums]
                counts = counts.unflatten(-1, (-1, 2)).sum(-1)
            if factor in self.factors:
                done = 0
                for s in sums:
                    some = counts[..., done : done + s.shape[2], :, None]
                    parts.append((s / some.clamp(min=1)).to(x.dtype).flatten(2, 3))
                    done += s.shape[2]
        return torch.cat(parts, 2)


def _counts(blocks: Blocks, groups: int, factor: int, device: torch.device) -> Tensor:
    """Return the number of real tokens in each group of each video block, [B|1, H|1, N, groups]."""
    tokens = blocks.sizes(device)[..., : blocks.video, None]
    first = torch.arange(groups, device=device) * factor
    return (tokens - first).clamp(0, factor)


def _pairs(x: Tensor, blocks: Blocks, size: int) -> list[Tensor]:
    """Return the sums of neighbours in each video block, [B, H, n, size / 2, D] in parts.

    Whole blocks are read in place; others are copied, with zeros up to `size`.
    """
    wide, tokens = torch.promote_types(x.dtype, torch.float32), blocks.video_tokens
    if blocks.offsets is None and blocks.size == size:
        whole = tokens // size
        full = x[:, :, : whole * size].unflatten(2, (whole, size // 2, 2))
        parts = [full.sum(4, dtype=wide)] if whole else []
        if tokens % size:
            tail = F.pad(x[:, :, whole * size : tokens], (0, 0, 0, -tokens % size))
            parts.append(tail.unflatten(2, (1, size // 2, 2)).sum(4, dtype=wide))
        return parts
    bounds = blocks.bounds(x.device)[..., : blocks.video + 1].long()
    at = bounds[..., :-1, None] + torch.arange(size, device=x.device)
    real = (at < bounds[..., 1:, None]).flatten(-2)
    at = at.clamp(max=tokens - 1).flatten(-2)
    if at.shape[:2] == (1, 1):
        moved = x.index_select(2, at[0, 0])
    else:
        moved = x.gather(2, at[..., None].expand(*x.shape[:2], -1, x.shape[3]))
    moved = moved.masked_fill(~real[..., None], 0)
    return [moved.unflatten(2, (blocks.video, size // 2, 2)).sum(4, dtype=wide)]
