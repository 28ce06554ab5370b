"""Tensors between the given token order and the arranged one, moved once per call."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dit_sparse.core import QKV, Blocks, Context, Layout
from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.permute import permute_tokens
from dit_sparse.kernels.pool import block_moments
from dit_sparse.kernels.rectify import PooledMap, pooled_map


def arranged(x: QKV, layout: Layout, ctx: Context) -> QKV:
    """Return q, k, v in arranged order; the stages of one call share the result."""

    def move() -> QKV:
        q, kv = layout.q.order, layout.kv.order
        return QKV(
            x.q if q is None else permute_tokens(x.q, q, impl=ctx.impl),
            x.k if kv is None else permute_tokens(_for_each(x.k, kv), kv, impl=ctx.impl),
            x.v if kv is None else permute_tokens(_for_each(x.v, kv), kv, impl=ctx.impl),
        )

    return ctx.once("arranged", move)


def _for_each(x: Tensor, order: Tensor) -> Tensor:
    """Return keys or values repeated where the query heads of one key head have own orders."""
    group = order.shape[1] // x.shape[1]
    return x.repeat_interleave(group, 1) if group > 1 else x


def restored(out: Tensor, blocks: Blocks, ctx: Context) -> Tensor:
    """Return an output [B, H, S, Dv] in arranged order to the given order."""
    if blocks.order is None:
        return out
    return permute_tokens(out, blocks.order, inverse=True, impl=ctx.impl)


def cut(blocks: Blocks) -> Cut:
    """Return the cut of all blocks, as the kernels take it."""
    return Cut(blocks.size, blocks.offsets)


def video_cut(blocks: Blocks) -> Cut:
    """Return the cut of the video blocks; their tokens come first in the arranged order."""
    offsets = blocks.offsets
    return Cut(blocks.size, None if offsets is None else offsets[..., : blocks.video + 1])


class Moments(NamedTuple):
    """First and mixed second moments of key blocks, float32 or wider.

    k: [B, Hkv, N, D] and v: [B, Hkv, N, Dv] means; covariance: [B, Hkv, D, Dv], the sum over all
    blocks j of H_j = sum_n (k_n - kbar_j)^T v_n; norm: [B, Hkv, N] Frobenius norm of each H_j.
    """

    k: Tensor
    v: Tensor
    covariance: Tensor
    norm: Tensor


def video_moments(k: Tensor, v: Tensor, blocks: Blocks, ctx: Context) -> Moments:
    """Return the moments of the video blocks of arranged k, v [B, Hkv, S, .], once per call."""
    tokens, cut = blocks.video_tokens, video_cut(blocks)

    def make() -> Moments:
        return Moments(*block_moments(k[:, :, :tokens], v[:, :, :tokens], cut, impl=ctx.impl))

    return ctx.once("moments", make)


def video_map(q: Tensor, k: Tensor, layout: Layout, spread: bool, ctx: Context) -> PooledMap:
    """Return the pooled map of arranged q, k [B, H, S, D], once per call; spread as there."""

    def make() -> PooledMap:
        return pooled_map(
            q,
            k,
            video_cut(layout.q),
            video_cut(layout.kv),
            layout.q.video_tokens,
            layout.kv.video_tokens,
            spread=spread,
            scale=ctx.scale,
            impl=ctx.impl,
        )

    return ctx.once(("pooled map", spread), make)
