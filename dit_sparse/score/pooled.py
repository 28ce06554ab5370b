"""Scores from block means."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dit_sparse.arranged import (
    Arranged,
    Moments,
    arranged,
    block_means,
    video_cut,
    video_moments,
)
from dit_sparse.core import QKV, Context, Layout
from dit_sparse.kernels.pool import pool_blocks
from dit_sparse.kernels.scores import pooled_scores


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
        moved, weight = arranged(x, layout, ctx), None
        if self.error_bias:
            moments = video_moments(moved)
            weight = _deviation(moved, moments) if self.deviation else moments.norm
        rows, cols = block_means(moved)
        return pooled_scores(
            rows,
            cols,
            scale=ctx.scale,
            cut=video_cut(layout.kv) if self.softmax else None,
            tokens=layout.kv.video_tokens,
            weight=weight,
            eps=1e-5,
            softmax=self.softmax,
            impl=ctx.impl,
        )


def _deviation(x: Arranged, moments: Moments) -> Tensor:
    """Return ||H_j - mean H|| [B, Hkv, N] of the video blocks; no H_j is written to memory.

    From <H_j, G> = sum_n k_n G v_n - n_j kbar_j G vbar_j.
    """
    blocks, wide = x.layout.kv, moments.k.dtype
    mean = moments.covariance / blocks.video
    k, v = (t[:, :, : blocks.video_tokens].to(wide) for t in (x.k, x.v))
    along = ((k @ mean) * v).sum(-1, keepdim=True)
    along = pool_blocks(along, video_cut(blocks), reduce="sum", impl=x.ctx.impl)[..., 0]
    sizes = blocks.sizes(k.device)[..., : blocks.video]
    along = along - sizes * ((moments.k @ mean) * moments.v).sum(-1)
    square = moments.norm.square() - 2 * along + mean.square().sum((-2, -1))[..., None]
    return square.clamp(min=0).sqrt()
