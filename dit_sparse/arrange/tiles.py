"""Space-time tiles: each block is a small box of the token grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from dit_sparse.constants import made_once
from dit_sparse.core import QKV, Blocks, Context, Grid, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.parameters import check_count


@dataclass(frozen=True)
class Tiles:
    """Blocks are boxes of (frames, height, width) tokens, in raster order inside and outside.

    A side that the tile does not divide is cut into ceil(side / tile) nearly equal parts, so no
    token is padded and no sliver is left. still: the tile for images (grids of one frame).
    uniform: keep this order but cut it every prod(tile) tokens, wherever the boxes end: equal
    blocks, which the kernels run fastest. queries: then cut the queries every so many tokens;
    None cuts them as the keys.
    Without a grid the sequence is cut in raster blocks of the same volume.
    Used by DraftAttention (1, 8, 16), PISA (4, 4, 4; images 1, 8, 8); PSA
    offers (2, 8, 8).
    """

    tile: tuple[int, int, int] = (4, 4, 4)
    still: tuple[int, int, int] | None = None
    uniform: bool = False
    queries: int | None = None

    def __post_init__(self) -> None:
        for tile in filter(None, (self.tile, self.still)):
            if len(tile) != 3 or not all(type(edge) is int and edge > 0 for edge in tile):
                raise ArgumentError(
                    f"tile={tile!r} must be three counts of tokens (frames, height, width), "
                    "each at least 1, e.g. (4, 4, 4)"
                )
        if self.queries is not None:
            check_count("queries", self.queries)
            if not self.uniform:
                raise ArgumentError(f"queries={self.queries} needs uniform=True")

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        if ctx.grid is None:
            size = prod(self.tile)
            return Layout.uniform(x, self.queries or size, size)
        device = str(x.q.device)
        blocks = self.blocks(ctx.grid, device)
        if self.queries is None:
            return Layout(blocks, blocks)
        return Layout(_tiled(ctx.grid, self._tile(ctx.grid), self.queries, device), blocks)

    def blocks(self, grid: Grid, device: str = "cpu") -> Blocks:
        """Return the blocks of keys of a grid, which follow from its sizes alone."""
        tile = self._tile(grid)
        return _tiled(grid, tile, prod(tile) if self.uniform else None, device)

    def _tile(self, grid: Grid) -> tuple[int, int, int]:
        return self.still if self.still and grid.frames == 1 else self.tile


@made_once(16)
def _tiled(grid: Grid, tile: tuple[int, int, int], every: int | None, device: str) -> Blocks:
    """Return the boxes of a grid, or their tokens cut every so many."""
    parts = tuple(-(-side // edge) for side, edge in zip(grid.sides, tile, strict=True))
    size, order, ends = grid.boxes(parts, device)
    if every is not None:
        size, ends = every, None
    return Blocks.with_text(grid, size, order, ends, device)
