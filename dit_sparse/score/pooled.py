"""Scores from block means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.arranged import arranged, video_cut, video_moments
from dit_sparse.core import QKV, Context, Layout
from dit_sparse.kernels.pool import pool_blocks


@dataclass(frozen=True)
class PooledDot:
    """scale * mean(q block) . mean(k block), [B, H, M, N] float32.

    softmax: normalise each row over the video blocks, a block of n tokens weighing n times.
    error_bias: add log ||H_j||, H_j the key-value covariance of block j (Frobenius norm): how much
    a first-order tail would miss there, so that such blocks are computed exactly.
    Used by DraftAttention (softmax), PISA (error_bias), VMoBA, SVG2.
    """

    softmax: bool = False
    error_bias: bool = False

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        q, k, v = arranged(x, layout, ctx)
        q, k = q[:, :, : layout.q.video_tokens], k[:, :, : layout.kv.video_tokens]
        wide = torch.promote_types(q.dtype, torch.float32)
        rows = pool_blocks(q, video_cut(layout.q), dtype=wide, impl=ctx.impl)
        bias = None
        if self.error_bias:
            moments = video_moments(k, v, layout.kv, ctx)
            cols, bias = moments.k, (moments.norm + 1e-5).log()
        else:
            cols = pool_blocks(k, video_cut(layout.kv), dtype=wide, impl=ctx.impl)
        group = q.shape[1] // k.shape[1]
        if group > 1:
            cols = cols.repeat_interleave(group, dim=1)
            bias = bias if bias is None else bias.repeat_interleave(group, dim=1)
        scale = q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale
        score = scale * rows @ cols.mT
        if bias is not None:
            score = score.add_(bias[:, :, None])
        if not self.softmax:
            return score
        sizes = layout.kv.sizes(score.device)[..., : layout.kv.video]
        return (score + sizes.log()[..., None, :]).softmax(dim=-1)
