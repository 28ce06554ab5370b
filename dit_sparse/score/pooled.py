"""Scores from block means."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dit_sparse.arranged import arranged, video_cut
from dit_sparse.core import QKV, Context, Layout
from dit_sparse.kernels.pool import block_moments, pool_blocks


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
        q, k, v = (t[:, :, :n] for t, n in zip(arranged(x, layout, ctx), _video(layout), strict=True))
        group = q.shape[1] // k.shape[1]
        rows = pool_blocks(q, video_cut(layout.q), impl=ctx.impl).float()
        if self.error_bias:
            cut = video_cut(layout.kv)
            moments = ctx.once("moments", lambda: block_moments(k, v, cut, impl=ctx.impl))
            cols, bias = moments.k, (moments.norm + 1e-5).log()
        else:
            cols, bias = pool_blocks(k, video_cut(layout.kv), impl=ctx.impl).float(), None
        scale = ctx.scale or q.shape[-1] ** -0.5
        score = scale * rows @ cols.float().repeat_interleave(group, dim=1).mT
        if bias is not None:
            score = score + bias.repeat_interleave(group, dim=1)[:, :, None]
        if not self.softmax:
            return score
        sizes = layout.kv.sizes(score.device)[..., : layout.kv.video]
        return (score + sizes.log()[..., None, :]).softmax(dim=-1)


def _video(layout: Layout) -> tuple[int, int, int]:
    """Return how many tokens of q, k and v are video."""
    return layout.q.video_tokens, layout.kv.video_tokens, layout.kv.video_tokens
