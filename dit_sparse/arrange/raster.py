"""The order the model gives, cut into equal blocks."""

from __future__ import annotations

from dataclasses import dataclass

from dit_sparse.core import QKV, Blocks, Context, Layout


@dataclass(frozen=True)
class Raster:
    """Blocks of `block` consecutive tokens, text behind the video. Used by dense attention."""

    block: int = 64

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        if ctx.grid is None:
            return Layout(
                Blocks.uniform(x.q.shape[2], self.block), Blocks.uniform(x.k.shape[2], self.block)
            )
        blocks = Blocks.with_text(ctx.grid, self.block, device=x.q.device)
        return Layout(blocks, blocks)
