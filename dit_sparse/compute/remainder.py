"""What stands for the blocks that are not computed exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.arranged import Arranged, block_means, cut, video_cut, video_moments
from dit_sparse.core import Context, Plan
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.contract import Columns, block_bounds, per_head
from dit_sparse.kernels.pool import block_ids, pool_blocks

# numbers of the largest temporary of a first-order term per block
SCRATCH = 1 << 26


@dataclass(frozen=True)
class Remainder:
    """What a remainder may do; each of the two acts has a default.

    Called with the arranged q, k, v before the kernel, it returns what joins the softmax of the
    exact blocks: extra key columns and a tail matrix. `finish` may change the kernel's output.
    """

    def __call__(
        self, x: Arranged, plan: Plan, ctx: Context
    ) -> tuple[Columns | None, Tensor | None]:
        return None, None

    def by_block(self, ctx: Context) -> bool:
        """Tell whether `finish` needs out and lse, and gives out, in arranged order."""
        return False

    def finish(self, out: Tensor, lse: Tensor, x: Arranged, plan: Plan, ctx: Context) -> Tensor:
        """Return the output [B, H, Sq, Dv] from the kernel's out and lse, in the given order."""
        return out


@dataclass(frozen=True)
class Drop(Remainder):
    """Nothing: the softmax runs over the exact blocks alone.

    Used by DraftAttention, SVG, SVG2, Sparse-vDiT, VMoBA, Rectified SpaAttn (rectify="none").
    """


@dataclass(frozen=True)
class Centroid(Remainder):
    """One key column per block: its mean key and mean value, counted n times (bias log n).

    Used by SVG-EAR.
    """

    def __call__(self, x: Arranged, plan: Plan, ctx: Context) -> tuple[Columns, None]:
        return _columns(*_means(x, plan, ctx), x, plan), None


@dataclass(frozen=True)
class Taylor(Remainder):
    """The Taylor expansion of exp(q . k) around each block's mean key.

    order 0: the mean key and value of each block with bias log n, for the linear term of the
    denominator cancels. order 1 adds the linear term of the numerator, by `first_order`:
    "global": (tail mass) * scale * q @ mean_n (k_n - kbar)(v_n)^T, one covariance for all blocks;
    "block": sum_j e_j * scale * q @ H_j with each block's own covariance. The latter is for study:
    a product with a D x Dv matrix per query and block costs as much as dense attention with blocks
    of D / 2 tokens, and it runs in plain torch. Used by PISA (2602.01077).
    """

    order: int = 1
    first_order: str = "global"

    def __post_init__(self) -> None:
        if self.order not in (0, 1):
            raise ArgumentError(f"order={self.order} must be 0 or 1")
        if self.first_order not in ("global", "block"):
            raise ArgumentError(f"first_order={self.first_order!r} must be 'global' or 'block'")

    def __call__(self, x: Arranged, plan: Plan, ctx: Context) -> tuple[Columns, Tensor | None]:
        if self.order == 0 or self.first_order == "block":
            return _columns(*_means(x, plan, ctx), x, plan), None
        if plan.causal:
            raise ArgumentError(
                "order=1 uses one covariance of all keys, also future ones; "
                "causal attention needs order=0 or first_order='block'"
            )
        moments = video_moments(x)
        tokens = plan.layout.kv.video_tokens
        return _columns(moments.k, moments.v, x, plan), moments.covariance / tokens

    def by_block(self, ctx: Context) -> bool:
        return self.order == 1 and self.first_order == "block"

    def finish(self, out: Tensor, lse: Tensor, x: Arranged, plan: Plan, ctx: Context) -> Tensor:
        if not self.by_block(ctx):
            return out
        return (out + _per_block(lse, x, plan, ctx)).to(out.dtype)


def _means(x: Arranged, plan: Plan, ctx: Context) -> tuple[Tensor, Tensor]:
    """Return the mean key and value of each video block, float32 or wider.

    What the stages before have computed, moments, pooled keys or centroids, is not computed again.
    """
    blocks = plan.layout.kv
    if "moments" in ctx.cache:
        moments = video_moments(x)
        return moments.k, moments.v
    cut, tokens = video_cut(blocks), blocks.video_tokens
    wide = torch.promote_types(x.k.dtype, torch.float32)

    def mean(name: str, t: Tensor) -> Tensor:
        found = ctx.cache.get(f"{name} centroids")
        # those carry no gradient
        if found is not None and not (torch.is_grad_enabled() and t.requires_grad):
            return found
        return pool_blocks(t[:, :, :tokens], cut, dtype=wide, impl=ctx.impl)

    if "block means" in ctx.cache:
        return block_means(x)[1], mean("v", x.v)
    return ctx.once("pooled keys", lambda: mean("k", x.k)), mean("v", x.v)


def _seen(plan: Plan) -> Tensor:
    """Return which query block sees which video block's column, bool [B, H, M, N]: level 0."""
    blocks, video = plan.layout.kv, plan.layout.kv.video
    seen = plan.level[..., :video] == 0
    if not plan.causal:
        return seen
    # a row of blocks sees a column only when all its tokens lie in the past
    rows, cols = plan.layout.q.bounds(seen.device), blocks.bounds(seen.device)
    first = rows[..., :-1, None] + blocks.length - plan.layout.q.length
    return seen & (cols[..., None, 1 : video + 1] <= first)


def _columns(k: Tensor, v: Tensor, x: Arranged, plan: Plan) -> Columns:
    """Return one column per video block [B, Hkv, N, D], seen where the plan's level is 0."""
    blocks = plan.layout.kv
    bias = blocks.sizes(x.k.device)[..., : blocks.video].to(torch.float32).log()
    return Columns(k.to(x.k.dtype), v.to(x.v.dtype), bias, _seen(plan))


def _per_block(lse: Tensor, x: Arranged, plan: Plan, ctx: Context) -> Tensor:
    """Return sum_j e_tj / Z_t * scale * q_t H_j over the seen columns, [B, H, Sq, Dv].

    The kernel's lse holds Z: e_tj / Z_t = exp(scale * q_t kbar_j - lse_t). Some blocks at a time:
    [T, J D] weighted queries times [J D, Dv] covariances.
    """
    batch, heads, rows, _ = x.q.shape
    kv_heads, blocks = x.k.shape[1], plan.layout.kv
    keys = _means(x, plan, ctx)[0]
    bounds = block_bounds(video_cut(blocks), blocks.video_tokens, x.k.device)
    start, end = (per_head(t, batch, kv_heads) for t in bounds)
    seen, row = _seen(plan), block_ids(cut(plan.layout.q), x.q)[..., None]
    scale = x.q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale
    # heads of one key head side by side: [B, Hkv, T, D], T = H / Hkv * Sq
    q = (scale * x.q.to(keys.dtype)).reshape(batch, kv_heads, -1, x.q.shape[-1])
    total = q.new_zeros(*q.shape[:3], x.v.shape[-1])
    step = max(1, SCRATCH // q.numel())
    for first in range(0, blocks.video, step):
        at = slice(first, first + step)
        mine = seen[..., at]
        mine = mine.expand(batch, heads, -1, -1).gather(2, row.expand(-1, -1, -1, mine.shape[-1]))
        logit = (q @ keys[:, :, at].mT).view(batch, heads, rows, -1) - lse[..., None]
        weight = logit.masked_fill(~mine, float("-inf")).exp().view(*q.shape[:3], -1)
        h = _covariances(x, keys[:, :, at], start[..., at], end[..., at], blocks.size)
        total = total + (weight[..., None] * q[..., None, :]).flatten(3) @ h.flatten(2, 3)
    return total.view(batch, heads, rows, -1)


def _covariances(x: Arranged, mean: Tensor, start: Tensor, end: Tensor, size: int) -> Tensor:
    """Return H_j = sum_n (k_n - kbar_j)^T v_n of the blocks [start, end), [B, Hkv, J, D, Dv]."""
    at = start[..., None] + torch.arange(size, device=start.device)
    outside = (at >= end[..., None])[..., None]
    place = at.clamp(max=x.k.shape[2] - 1).flatten(2)[..., None]
    k, v = (
        t.gather(2, place.expand(-1, -1, -1, t.shape[-1])).unflatten(2, at.shape[2:]).to(mean.dtype)
        for t in (x.k, x.v)
    )
    return (k - mean[:, :, :, None]).masked_fill(outside, 0).mT @ v
