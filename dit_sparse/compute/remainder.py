"""What stands for the blocks that are not computed exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.arranged import video_cut, video_moments
from dit_sparse.core import QKV, Context, Plan
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.contract import Columns
from dit_sparse.kernels.pool import pool_blocks


@dataclass(frozen=True)
class Remainder:
    """What a remainder may do; each of the two acts has a default.

    Called with the arranged q, k, v before the kernel, it returns what joins the softmax of the
    exact blocks: extra key columns and a tail matrix. `finish` may change the kernel's output.
    """

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> tuple[Columns | None, Tensor | None]:
        return None, None

    def finish(self, out: Tensor, lse: Tensor, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        """Return the output [B, H, Sq, Dv], in arranged order, from the kernel's out and lse."""
        return out


@dataclass(frozen=True)
class Drop(Remainder):
    """Nothing: the softmax runs over the exact blocks alone."""


@dataclass(frozen=True)
class Centroid(Remainder):
    """One key column per block: its mean key and mean value, counted n times (bias log n)."""

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> tuple[Columns, None]:
        blocks = plan.layout.kv
        cut, tokens = video_cut(blocks), blocks.video_tokens
        k = pool_blocks(x.k[:, :, :tokens], cut, impl=ctx.impl)
        v = pool_blocks(x.v[:, :, :tokens], cut, impl=ctx.impl)
        return _columns(k, v, x, plan), None


@dataclass(frozen=True)
class Taylor(Remainder):
    """The Taylor expansion of exp(q . k) around each block's mean key (PISA, 2602.01077).

    order 0: the mean key and value of each block with bias log n, for the linear term of the
    denominator cancels. order 1: adds (tail mass) * scale * q @ mean_n (k_n - kbar)(v_n)^T, one
    covariance for all blocks.
    """

    order: int = 1

    def __post_init__(self) -> None:
        if self.order not in (0, 1):
            raise ArgumentError(f"order={self.order} must be 0 or 1")

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> tuple[Columns, Tensor | None]:
        if self.order == 0:
            return Centroid()(x, plan, ctx)
        if plan.causal:
            raise ArgumentError(
                "order=1 uses one covariance of all keys, also future ones; "
                "causal attention needs order=0"
            )
        moments = video_moments(x.k, x.v, plan.layout.kv, ctx)
        tokens = plan.layout.kv.video_tokens
        return _columns(moments.k, moments.v, x, plan), moments.covariance / tokens


def _columns(k: Tensor, v: Tensor, x: QKV, plan: Plan) -> Columns:
    """Return one column per video block [B, Hkv, N, D], seen where the plan's level is 0."""
    blocks, video = plan.layout.kv, plan.layout.kv.video
    seen = plan.level[..., :video] == 0
    if plan.causal:
        # a row of blocks sees a column only when all its tokens lie in the past
        rows, cols = plan.layout.q.bounds(seen.device), blocks.bounds(seen.device)
        first = rows[..., :-1, None] + blocks.length - plan.layout.q.length
        seen = seen & (cols[..., None, 1 : video + 1] <= first)
    bias = blocks.sizes(seen.device)[..., :video].to(torch.float32).log()
    return Columns(k.to(x.k.dtype), v.to(x.v.dtype), bias, seen)
