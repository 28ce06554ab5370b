"""Scores of single queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.arranged import arranged, video_cut
from dit_sparse.core import QKV, Context, Layout
from dit_sparse.kernels.pool import pool_blocks


@dataclass(frozen=True)
class TokenGate:
    """q_t . mean(k block), [B, H, S, N] float32: every video token scores every block itself.

    The layout's query blocks hold one token each. Neither scale nor gradient: choices carry none.
    Used by VMoBA.
    """

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        moved = arranged(x, layout, ctx)
        q = moved.q[:, :, : layout.q.video_tokens].detach()
        k = moved.k[:, :, : layout.kv.video_tokens].detach()
        wide = torch.promote_types(q.dtype, torch.float32)
        keys = pool_blocks(k, video_cut(layout.kv), dtype=wide, impl=ctx.impl)
        group = q.shape[1] // k.shape[1]
        return q.to(wide) @ (keys.repeat_interleave(group, dim=1) if group > 1 else keys).mT
