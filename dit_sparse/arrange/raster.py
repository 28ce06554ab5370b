"""The order the model gives, cut into equal blocks."""

from __future__ import annotations

from dataclasses import dataclass

from dit_sparse.constants import made_once
from dit_sparse.core import QKV, Blocks, Context, Grid, Layout
from dit_sparse.parameters import check_count


@dataclass(frozen=True)
class Raster:
    """Blocks of `block` consecutive tokens, text behind the video.

    kv_block: size of the key blocks where it differs from that of the query blocks. block=1: for
    queries that choose for themselves; compute them with per_token. Used by dense, SLA and most
    methods for language models; PSA and Rectified SpaAttn offer it.
    """

    block: int = 64
    kv_block: int | None = None

    def __post_init__(self) -> None:
        check_count("block", self.block)
        if self.kv_block is not None:
            check_count("block", self.kv_block)

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        if ctx.grid is None:
            return Layout.uniform(x, self.block, self.kv_block)
        sizes = self.block, self.kv_block or self.block
        return Layout(*(_cut(ctx.grid, n, str(x.q.device)) for n in sizes))


@made_once(16)
def _cut(grid: Grid, block: int, device: str) -> Blocks:
    """Return the blocks of a grid."""
    return Blocks.with_text(grid, block, device=device)
