"""Queries one by one, keys in blocks."""

from __future__ import annotations

from dataclasses import dataclass

from dit_sparse.core import QKV, Blocks, Context, Layout
from dit_sparse.parameters import check_count


@dataclass(frozen=True)
class SingleQueries:
    """Query blocks of one token, key blocks of `block`, in the given order; text behind the video.

    For queries that choose for themselves: compute them with per_token. Used by MoBA, block top-k.
    """

    block: int = 128

    def __post_init__(self) -> None:
        check_count("block", self.block)

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        if ctx.grid is None:
            return Layout.uniform(x, 1, self.block)
        device = x.q.device
        return Layout(*(Blocks.with_text(ctx.grid, n, device=device) for n in (1, self.block)))
