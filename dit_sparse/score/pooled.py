"""Scores from block means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.arranged import Moments, arranged, video_cut, video_moments
from dit_sparse.core import QKV, Blocks, Context, Layout
from dit_sparse.kernels.pool import pool_blocks


@dataclass(frozen=True)
class PooledDot:
    """scale * mean(q block) . mean(k block), [B, H, M, N] float32.

    softmax: normalise each row over the video blocks, a block of n tokens weighing n times.
    error_bias: add log ||H_j||, H_j the key-value covariance of block j (Frobenius norm): how much
    a first-order tail would miss there, so that such blocks are computed exactly. deviation: take
    ||H_j - mean H|| instead, what a tail with one covariance for all blocks would miss.
    Used by DraftAttention (softmax), PISA (error_bias, deviation), dense.
    """

    softmax: bool = False
    error_bias: bool = False
    deviation: bool = False

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        q, k, v = arranged(x, layout, ctx)
        q, k = q[:, :, : layout.q.video_tokens], k[:, :, : layout.kv.video_tokens]
        wide = torch.promote_types(q.dtype, torch.float32)
        rows = pool_blocks(q, video_cut(layout.q), dtype=wide, impl=ctx.impl)
        bias = None
        if self.error_bias:
            moments = video_moments(k, v, layout.kv, ctx)
            norm = _deviation(k, v, moments, layout.kv, ctx) if self.deviation else moments.norm
            cols, bias = moments.k, (norm + 1e-5).log()
        else:
            # a remainder of block means asks for the same
            cut = video_cut(layout.kv)
            cols = ctx.once("pooled keys", lambda: pool_blocks(k, cut, dtype=wide, impl=ctx.impl))
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
        return (score + layout.kv.video_sizes(score).log()).softmax(dim=-1)


def _deviation(k: Tensor, v: Tensor, moments: Moments, blocks: Blocks, ctx: Context) -> Tensor:
    """Return ||H_j - mean H|| [B, Hkv, N] of the video blocks; no H_j is written to memory.

    k, v: [B, Hkv, S, .] video tokens. From <H_j, G> = sum_n k_n G v_n - n_j kbar_j G vbar_j.
    """
    wide, tokens = moments.k.dtype, blocks.video_tokens
    mean = moments.covariance / blocks.video
    along = ((k.to(wide) @ mean) * v[:, :, :tokens].to(wide)).sum(-1, keepdim=True)
    along = pool_blocks(along, video_cut(blocks), reduce="sum", impl=ctx.impl)[..., 0]
    sizes = blocks.sizes(k.device)[..., : blocks.video]
    along = along - sizes * ((moments.k @ mean) * moments.v).sum(-1)
    square = moments.norm.square() - 2 * along + mean.square().sum((-2, -1))[..., None]
    return square.clamp(min=0).sqrt()
