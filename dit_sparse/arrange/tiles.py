"""Space-time tiles: each block is a small box of the token grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
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
            size = prod(self.tile)
            return Layout(Blocks.uniform(x.q.shape[2], size), Blocks.uniform(x.k.shape[2], size))
        tile = self.still if self.still and ctx.grid.frames == 1 else self.tile
        blocks = _tiled(ctx.grid, tile, self.uniform, str(x.q.device))
        return Layout(blocks, blocks)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _tiled(grid: Grid, tile: tuple[int, int, int], uniform: bool, device: str) -> Blocks:
    """Return the blocks of a grid; they depend on sizes alone, so each is built once.

    Outside inference mode, for a later call may need them with gradients.
    """
    sides = (grid.frames, grid.height, grid.width)
    parts = [-(-side // edge) for side, edge in zip(sides, tile, strict=True)]
    # part i of a side holds the positions p with p * parts // side == i
    part = [torch.arange(s) * n // s for s, n in zip(sides, parts, strict=True)]
    t, h, w = torch.meshgrid(*part, indexing="ij")
    box = ((t * parts[1] + h) * parts[2] + w).flatten()
    order = torch.argsort(box, stable=True).to(device)
    if uniform:
        return Blocks.with_text(grid, prod(tile), order, device=device)
    # plain numbers, not tensors: a compiler can trace them, and no device is waited for
    t, h, w = (
        [-(-(i + 1) * s // n) + (-i * s // n) for i in range(n)]
        for s, n in zip(sides, parts, strict=True)
    )
    sizes = [a * b * c for a in t for b in h for c in w]
    if len(set(sizes)) == 1:
        return Blocks.with_text(grid, sizes[0], order, device=device)
    ends = torch.tensor(list(accumulate(sizes)), dtype=torch.int32, device=device)
    return Blocks.with_text(grid, max(sizes), order, ends, device=device)
