"""Space-time tiles: each block is a small box of the token grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch

from dit_sparse.core import QKV, Blocks, Context, Grid, Layout
from dit_sparse.errors import ArgumentError


@dataclass(frozen=True)
class Tiles:
    """Blocks are boxes of (frames, height, width) tokens, in raster order inside and outside.

    A side that the tile does not divide is cut into ceil(side / tile) nearly equal parts, so no
    token is padded and no sliver is left. still: the tile for images (grids of one frame).
    uniform: keep this order but cut it every prod(tile) tokens, wherever the boxes end: equal
    blocks, which the kernels run fastest.
    Without a grid the sequence is cut in raster blocks of the same volume.
    Used by DraftAttention (1, 8, 16), PISA (4, 4, 4; images 1, 8, 8); PSA
    offers (2, 8, 8).
    """

    tile: tuple[int, int, int] = (4, 4, 4)
    still: tuple[int, int, int] | None = None
    uniform: bool = False

    def __post_init__(self) -> None:
        for tile in filter(None, (self.tile, self.still)):
            if len(tile) != 3 or not all(type(edge) is int and edge > 0 for edge in tile):
                raise ArgumentError(
                    f"tile={tile!r} must be three counts of tokens (frames, height, width), "
                    "each at least 1, e.g. (4, 4, 4)"
                )

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        if ctx.grid is None:
            return Layout.uniform(x, prod(self.tile))
        blocks = self.blocks(ctx.grid, str(x.q.device))
        return Layout(blocks, blocks)

    def blocks(self, grid: Grid, device: str = "cpu") -> Blocks:
        """Return the blocks of a grid, which follow from its sizes alone."""
        tile = self.still if self.still and grid.frames == 1 else self.tile
        return _tiled(grid, tile, self.uniform, device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _tiled(grid: Grid, tile: tuple[int, int, int], uniform: bool, device: str) -> Blocks:
    """Return the blocks of a grid; they depend on sizes alone, so each is built once.

    Outside inference mode, for a later call may need them with gradients.
    """
    parts = tuple(-(-side // edge) for side, edge in zip(grid.sides, tile, strict=True))
    size, order, ends = grid.boxes(parts, device)
    if uniform:
        size, ends = prod(tile), None
    return Blocks.with_text(grid, size, order, ends, device)
