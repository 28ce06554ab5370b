"""Budgets for geometric scores: one band for all heads, or a mode for each head by a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf
from typing import Any

import torch
from torch import Tensor

from dit_sparse.constants import constant
from dit_sparse.core import Context, Known, Layout, layer_row
from dit_sparse.errors import ArgumentError
from dit_sparse.parameters import check_share

MODES = "FSDMV"


@dataclass(frozen=True)
class Band:
    """Keep block pairs of score >= -w: w is the width whose density comes nearest to `keep`.

    keep counts pairs of the whole map, so text, which is kept anyway, narrows the band; the
    diagonal always stays. first_frame: the score holds the first frame's columns at 0 (count
    them). Used by SVG.
    """

    keep: float
    first_frame: bool = False

    def __post_init__(self) -> None:
        check_share("keep", self.keep)

    def capacity(self, columns: int) -> int | None:
        # how many columns a frame has is known to the grid only
        return None if self.first_frame else min(columns, 2 * band_width(self.keep, columns) + 1)

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        n, first, grid = layout.kv.video, 0, ctx.grid
        if self.first_frame and grid is not None and grid.frames > 1:
            first = -(-grid.height * grid.width // layout.kv.size)
        width = band_width(_of_video(self.keep, layout), n, first)
        return (score >= -width).view(torch.int8)


@dataclass(frozen=True)
class Table:
    """The mode of every head: F full, S skip, D diagonal, M multi-diagonal, V vertical stripes.

    rows: one string for every layer and step, repeated over the heads; or one string per layer;
    or, for every step, one string per layer. Strings of a layer have one letter per head.
    """

    rows: str | tuple[str, ...] | tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", _tuples(self.rows))
        rows = self.rows
        if not rows:
            raise ArgumentError(f"table={rows!r} must hold at least one letter, e.g. 'DM'")
        steps = [rows]
        if isinstance(rows, tuple) and any(isinstance(row, tuple) for row in rows):
            steps = list(rows)
        layers = len(steps[0])
        for at, step in enumerate(steps):
            if len(steps) > 1 and isinstance(step, str):
                raise ArgumentError(f"table: step {at} is {step!r}, not a list of rows per layer")
            if len(step) != layers:
                raise ArgumentError(f"table: step {at} has {len(step)} layers, step 0 has {layers}")
            for row in (step,) if isinstance(step, str) else step:
                if not isinstance(row, str) or not row or set(row) - set(MODES):
                    raise ArgumentError(
                        f"table: {row!r} must be a string of the letters {', '.join(MODES)}, "
                        "one per head, e.g. 'DMV'"
                    )

    def __call__(self, ctx: Context, heads: int) -> str:
        """Return the letters of the heads of a call, at its layer and step."""
        total, mine = ctx.held(heads)
        return self._row(ctx.layer, ctx.step, ctx.steps, total)[mine]

    def check(self, known: Known) -> None:
        """Raise unless every sparse layer has a row, at every sparse step, a letter per head."""
        steps = range(1)
        if self._by_step:
            # the number of steps follows from the table; the last one is sparse in any case
            steps = known.steps or range(len(self.rows))[-1:]
        for step in steps:
            for layer in known.layers:
                self._row(layer, step, steps.stop, known.heads)

    @property
    def _by_step(self) -> bool:
        return isinstance(self.rows[0], tuple)

    def _row(self, layer: int, step: int, steps: int, heads: int | None) -> str:
        """Return the row of a layer and step; heads=None takes any length."""
        rows: Any = self.rows
        if self._by_step:
            if not step < steps == len(rows):
                raise ArgumentError(
                    f"table has rows for {len(rows)} steps, this is step {step} of "
                    f"{steps}; a table by steps serves one number of steps"
                )
            rows = rows[step]
        return layer_row(rows, layer, heads, "table", "letter")


@dataclass(frozen=True)
class PerHead:
    """Each head keeps what its mode allows: F all, S nothing, D and M a band, V a list of columns.

    diagonal, multi_diagonal, stripe: the shares of the whole map that D, M and V keep; a band is
    as wide as in `Band`, a list has the ceil(share * N) blocks of best score. Used by Sparse-vDiT.
    """

    table: Table
    diagonal: float = 0.15
    multi_diagonal: float = 0.15
    stripe: float = 0.10

    def __post_init__(self) -> None:
        for name in ("diagonal", "multi_diagonal", "stripe"):
            check_share(name, getattr(self, name))

    def capacity(self, columns: int) -> int | None:
        bands = (2 * band_width(s, columns) + 1 for s in (self.diagonal, self.multi_diagonal))
        most = max(*bands, _stripes(self.stripe, columns))
        return columns if "F" in str(self.table.rows) else min(columns, most)

    def __call__(self, score: Tensor, layout: Layout, ctx: Context) -> Tensor:
        n = layout.kv.video
        lowest = {
            "F": -inf,
            "S": inf,
            "D": -band_width(_of_video(self.diagonal, layout), n),
            "M": -band_width(_of_video(self.multi_diagonal, layout), n),
            "V": 1 - _stripes(_of_video(self.stripe, layout), n),
        }
        edges = tuple(float(lowest[mode]) for mode in self.table(ctx, score.shape[1]))
        edge = constant(edges, torch.float32, str(score.device))
        return (score >= edge[:, None, None]).view(torch.int8)


@lru_cache(maxsize=1024)
def band_width(share: float, n: int, first: int = 0) -> int:
    """Return the half-width w of the band in n x n blocks whose size is nearest to share * n^2.

    The band holds |i - j| <= w and the `first` columns; w = n - 1 keeps everything.
    """

    def size(w: int) -> int:
        band = (2 * w + 1) * n - w * (w + 1)
        # the first columns below the band and above it: sums of falling heights
        deep = n - 1 - w
        cols, above = min(first, deep), max(0, first - 1 - w)
        return band + cols * deep - cols * (cols - 1) // 2 + above * (above + 1) // 2

    return n - 1 if share >= 1 else min(range(n), key=lambda w: abs(size(w) - share * n * n))


def _stripes(share: float, n: int) -> int:
    """Return how many of n key blocks a list of stripes holds."""
    # the small term undoes products such as 0.29 * 100 = 28.999...
    return min(n, max(1, ceil(share * n - 1e-6)))


def _of_video(share: float, layout: Layout) -> float:
    """Return the share of the video's map that is left when text rows and columns are kept."""
    if not layout.kv.text_tokens:
        # exactly: `capacity` counts with this share
        return share
    every, video = layout.kv.length**2, layout.kv.video_tokens**2
    return max(0.0, (share * every - (every - video)) / video)


def _tuples(rows: object) -> object:
    """Return nested lists, as TOML writes them, as tuples; raise unless they hold something."""
    if isinstance(rows, list | tuple) and rows:
        return tuple(_tuples(row) for row in rows)
    if isinstance(rows, str):
        return rows
    raise ArgumentError(
        f"table={rows!r} must be a string of modes, a list of them (one per layer) or a list of "
        "such lists (one per step)"
    )
