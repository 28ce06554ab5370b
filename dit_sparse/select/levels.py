"""Give each block pair a level of a pyramid: exact, pooled by 2, 4 or 8, or skipped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import floor

import torch
from torch import Tensor

from dit_sparse.constants import constant
from dit_sparse.core import Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.select import budget_classes
from dit_sparse.parameters import check_share, quota

# what the rounding of a sum of shares may add or take
_SLACK = 1e-6
# the released code computes this share of each row exactly, whatever the thresholds
_FLOOR = 0.06
_FACTORS = tuple(
    (1, *(f for f, bit in ((2, 1), (4, 2), (8, 4)) if mask & bit)) for mask in range(8)
)


@dataclass(frozen=True)
class Levels:
    """Cut each row, by falling score, at cumulative bounds: one per level, the rest is skipped.

    factors: tokens per pooled token of each level, from 1 (exact) up to 8.
    bounds: one cumulative share per factor, rising.
    rule: "threshold": the shares are of the score's mass (which must not be negative); a block has
    the first level whose bound its mass, with that of all better blocks, does not exceed.
    "released": the block that crosses a bound still belongs to it, and 6 % of the row are exact.
    "quota": the shares are of the number of blocks, floor(bound * N).
    keep: above 0, the bounds are quotas times one common number (at most 1 each), the largest that
    computes at most the share `keep` of a row: sum over levels of share / factor.
    capped: the score stage shares "level_caps", the largest level of each key block.
    The best block of a row is always exact. Used by PSA.
    """

    factors: tuple[int, ...] = (1, 2, 4, 8)
    bounds: tuple[float, ...] = (0.4, 0.5, 0.6, 0.8)
    rule: str = "threshold"
    keep: float = 0.0
    capped: bool = False

    def __post_init__(self) -> None:
        factors, bounds = self.factors, self.bounds
        if factors not in _FACTORS:
            raise ArgumentError(
                f"levels={factors!r} must be 1 and then any of 2, 4, 8, rising, e.g. (1, 2, 4, 8)"
            )
        if self.rule not in ("threshold", "released", "quota"):
            raise ArgumentError(f"rule={self.rule!r} must be 'threshold', 'released' or 'quota'")
        numbers = all(isinstance(b, int | float) and 0 <= b <= 1 for b in bounds)
        if not numbers or list(bounds) != sorted(bounds) or len(bounds) != len(factors):
            raise ArgumentError(
                f"bounds={bounds!r} must be {len(factors)} rising shares in [0, 1], one for each "
                f"of levels={factors!r}"
            )
        check_share("keep", self.keep, zero="bounds as given")
        if self.keep and not bounds[0]:
            raise ArgumentError(
                f"bounds={bounds!r} must start above 0 to be scaled to keep={self.keep}"
            )

    def capacity(self, columns: int) -> int:
        # a cap may turn every pooled block into an exact one
        return self._ends(columns)[-1 if self.capped else 0]

    def _ends(self, n: int) -> tuple[int, ...]:
        """Return the most blocks, of n, at each factor or a lower one."""
        if self.keep or self.rule == "quota":
            return quotas(n, self.factors, self.bounds, float(self.keep))
        # the r best of n hold at least the share r / n of the mass; one block for rounding
        ends = [min(n, floor(b * n) + 1) for b in self.bounds]
        if self.rule == "released":
            ends = [max(min(n, end + 1), floor(_FLOOR * n) + 1) for end in ends]
        return tuple(ends)

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        n, ends = score.shape[-1], self._ends(score.shape[-1])
        # how many blocks a row pools, at most: the remainder's lists need not be longer
        exact = ends[0] if self.keep or self.rule == "quota" else 1
        most = {f: end - exact for f, end in zip(self.factors, ends, strict=True)}
        if self.capped:
            # a cap may turn every pooled block into one of the finest
            most = dict.fromkeys(self.factors, ends[-1])
        ctx.once("pooled_blocks", lambda: most)
        floors = (1,) * len(ends)
        if self.keep or self.rule == "quota":
            classes = budget_classes(
                score, _row(ends, score), floors=floors, inclusive=True, impl=ctx.impl
            )
        else:
            # rounding must not cut the last blocks of a bound that means all
            limits = tuple(b + _SLACK if b < 1 else 2.0 for b in self.bounds)
            released = self.rule == "released"
            if released:
                floors = (floor(_FLOOR * n) + 1,) * len(ends)
            classes = budget_classes(
                score,
                _row(limits, score),
                score,
                floors=floors,
                inclusive=not released,
                impl=ctx.impl,
            )
        level = torch.zeros_like(classes)
        for i, factor in enumerate(self.factors):
            level = level.masked_fill(classes == i, factor.bit_length())
        if self.capped:
            if "level_caps" not in ctx.cache:
                raise ArgumentError("capped=True needs a score stage that shares level_caps")
            level = torch.minimum(level, ctx.cache["level_caps"][:, :, None])
        return level


# a compiler takes the numbers as they are instead of tracing the search for them
@torch.compiler.assume_constant_result
@lru_cache(maxsize=64)
def quotas(
    n: int, factors: tuple[int, ...], bounds: tuple[float, ...], keep: float
) -> tuple[int, ...]:
    """Return where each level ends in a row of n blocks.

    >>> quotas(100, (1, 2, 4, 8), (0.1, 0.15, 0.15, 0.35), 0.0)
    (10, 15, 15, 35)
    """

    def cut(number: float) -> tuple[int, ...]:
        return tuple(quota(min(1.0, number * b), n) for b in bounds)

    def work(ends: tuple[int, ...]) -> float:
        sizes = (b - a for a, b in zip((0, *ends), ends, strict=False))
        return sum(size / f for size, f in zip(sizes, factors, strict=True)) / n

    if not keep:
        return cut(1.0)
    # work rises with the number; at `high` every block is exact
    low, high = 0.0, 1 / bounds[0]
    if work(cut(high)) <= keep + _SLACK:
        return cut(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if work(cut(middle)) <= keep + _SLACK else (low, middle)
    return cut(low)


def _row(limits: tuple[float, ...], like: Tensor) -> Tensor:
    """Return numbers as a tensor [1, 1, 1, T] beside `like`, made once per device."""
    wide = torch.promote_types(like.dtype, torch.float32)
    return constant(limits, wide, str(like.device)).view(1, 1, 1, -1)
