"""Tensors between the given token order and the arranged one, moved and pooled once per call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dit_sparse.core import QKV, Blocks, Context, Layout
from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.permute import Move, move_tokens, permute_tokens
from dit_sparse.kernels.pool import block_covariances
from dit_sparse.kernels.rectify import PooledMap, pooled_map


@dataclass(frozen=True, eq=False)
class Arranged:
    """q, k and v of one call in arranged order; none is moved before it is first read.

    The attention kernel reads queries by their order, so that a method that needs no more of them
    than their means never moves them. Unpacks as `QKV` does.
    """

    given: QKV
    layout: Layout
    ctx: Context

    @property
    def q(self) -> Tensor:
        """Return the queries [B, H, Sq, D], moved."""
        x, order, ctx = self.given.q, self.layout.q.order, self.ctx
        if order is None:
            return x
        return ctx.once("arranged q", lambda: permute_tokens(x, order, impl=ctx.impl))

    @property
    def k(self) -> Tensor:
        """Return the keys [B, Hkv or H, Skv, D], moved."""
        return self._keys()[0]

    @property
    def v(self) -> Tensor:
        """Return the values [B, Hkv or H, Skv, Dv], moved."""
        return self._keys()[1]

    def _keys(self) -> tuple[Tensor, Tensor]:
        order = self.layout.kv.order
        if order is None:
            return self.given.k, self.given.v

        def move() -> tuple[Tensor, Tensor]:
            moves = (Move(x, order, 64, True, None) for x in self.loose)
            (k, _), (v, _) = move_tokens(*moves, impl=self.ctx.impl)
            return _there(k), _there(v)

        return self.ctx.once("arranged keys", move)

    @property
    def loose(self) -> tuple[Tensor, Tensor]:
        """Return keys and values where they were, repeated if the heads of one have own orders."""
        order, (_, k, v) = self.layout.kv.order, self.given
        group = 1 if order is None else order.shape[1] // k.shape[1]
        return (
            (k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)) if group > 1 else (k, v)
        )

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.q, self.k, self.v))

    def __getitem__(self, side: int) -> Tensor:
        return (self.q, self.k, self.v)[side]


def arranged(x: QKV, layout: Layout, ctx: Context) -> Arranged:
    """Return q, k, v in arranged order; the stages of one call share what is moved."""
    return Arranged(x, layout, ctx)


def block_means(x: Arranged) -> tuple[Tensor, Tensor]:
    """Return the means of the video blocks, q [B, H, M, D] and k [B, Hkv or H, N, D].

    float32 or wider, once per call. Keys and values that did not move yet move in the same pass.
    """
    q, k, *_ = _means(x, values=False)
    return q, k


def _means(x: Arranged, values: bool) -> tuple[Tensor, ...]:
    """Return `block_means` and, with `values`, the means of v [B, Hkv or H, N, Dv]."""
    (rows, cols), ctx = x.layout, x.ctx

    def make() -> tuple[Tensor, ...]:
        moves = [_pooled(x.given.q, rows.order, rows)]
        together = cols.order is not None and "arranged keys" not in ctx.cache
        if together:
            (k, v), wide = x.loose, moves[0].mean
            moves.append(Move(k, cols.order, cut(cols), True, wide))
            pooled = (cut(cols), True, wide) if values else (64, True, None)
            moves.append(Move(v, cols.order, *pooled))
        else:
            moves += [_pooled(t, None, cols) for t in ((x.k, x.v) if values else (x.k,))]
        (_, q_mean), *rest = move_tokens(*moves, impl=ctx.impl)
        if together:
            ctx.once("arranged keys", lambda: tuple(_there(t) for t, _ in rest))
        return _there(q_mean), *(mean[:, :, : cols.video] for _, mean in rest if mean is not None)

    found = ctx.cache.get("block means") or make()
    if values and len(found) == 2:
        found = *found, _there(move_tokens(_pooled(x.v, None, cols), impl=ctx.impl)[0][1])
    ctx.cache["block means"] = found
    return found


def _pooled(x: Tensor, order: Tensor | None, blocks: Blocks) -> Move:
    """Return the pass that pools the video blocks of x [B, H, S, D]; order: None where they stand
    in arranged order."""
    tokens, wide = blocks.video_tokens, torch.promote_types(x.dtype, torch.float32)
    if order is None:
        return Move(x[:, :, :tokens], None, video_cut(blocks), False, wide)
    return Move(x, order[..., :tokens], video_cut(blocks), False, wide)


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


def video_moments(x: Arranged) -> Moments:
    """Return the moments of the video blocks of k and v, once per call."""
    blocks, ctx = x.layout.kv, x.ctx

    def make() -> Moments:
        _, *means = _means(x, values=True)
        k, v = (t[:, :, : blocks.video_tokens] for t in (x.k, x.v))
        found = block_covariances(k, v, means[0], means[1], video_cut(blocks), impl=ctx.impl)
        return Moments(means[0], means[1], *found)

    return ctx.once("moments", make)


def video_map(x: Arranged, spread: bool) -> PooledMap:
    """Return the pooled map of q and k, once per call; spread as there."""
    (rows, cols), ctx = x.layout, x.ctx

    def make() -> PooledMap:
        return pooled_map(
            x.given.q,
            x.k,
            video_cut(rows),
            video_cut(cols),
            rows.video_tokens,
            cols.video_tokens,
            q_order=rows.order,
            spread=spread,
            scale=ctx.scale,
            impl=ctx.impl,
        )

    return ctx.once(("pooled map", spread), make)


def _there(x: Tensor | None) -> Tensor:
    """Return what a pass was asked for."""
    assert x is not None
    return x
