"""Choices that only some layers make, and the newest keys beside the best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.core import Context, Layout, Select
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.lists import top_blocks
from dit_sparse.parameters import check_count


@dataclass(frozen=True)
class Outside:
    """What `select` keeps, but every block in the layers `full` and in the first `first` ones.

    Used by DELTA, HyLRA.
    """

    select: Select
    full: tuple[int, ...]
    first: int = 0

    def capacity(self, columns: int) -> None:
        return None

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        if ctx.layer < self.first or ctx.layer in self.full:
            return torch.ones_like(score, dtype=torch.int8)
        return self.select(score, layout, ctx)


@dataclass(frozen=True)
class RecentTopK:
    """Each row keeps `count` blocks: the newest `recent` of those it sees and the best others.

    Used by DELTA.
    """

    count: int
    recent: int

    def __post_init__(self) -> None:
        check_count("pages", self.count)
        check_count("recent", self.recent)
        if self.recent > self.count:
            raise ArgumentError(
                f"recent={self.recent} must be at most pages={self.count}, which counts them"
            )

    def capacity(self, columns: int) -> int:
        return min(columns, self.count)

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        block = torch.arange(score.shape[3], device=score.device)
        newest = (layout.own(score.device) * block).amax(-1, keepdim=True)
        near = (block > newest - self.recent) & (block <= newest)
        rank = score.masked_fill(near & ~score.isnan(), float("inf"))
        return top_blocks(rank, self.capacity(score.shape[3]), impl=ctx.impl)
