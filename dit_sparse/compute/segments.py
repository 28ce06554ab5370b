"""Causal attention over keys that are ordered inside segments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.arranged import arranged
from dit_sparse.compute.attend import chosen
from dit_sparse.core import QKV, Context, Plan, on_device
from dit_sparse.kernels.attention import block_sparse_attention
from dit_sparse.kernels.lists import pack_lists


@dataclass(frozen=True)
class AttendSegments:
    """Exact attention to the kept blocks: ordered ones of earlier segments, own ones as given.

    An earlier segment is visible as a whole, in whatever order. In the own one, position and order
    would disagree on what is the past: its blocks are taken from the keys in the order given. The
    kernel sees both, the ordered keys of the whole segments before the given ones, and its causal
    mask then means what it says in both. Used by PBS-Attn.
    """

    segment: int = 256

    @on_device
    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        moved, kv = arranged(x, plan.layout, ctx), plan.layout.kv
        keep, k, v = plan.level == 1, x.k, x.v
        if kv.order is not None:
            whole = kv.length // self.segment * self.segment
            heads = moved.k.shape[1] // k.shape[1]
            k, v = (
                torch.cat((a[:, :, :whole], b.repeat_interleave(heads, 1)), 2)
                for a, b in ((moved.k, k), (moved.v, v))
            )
            own = plan.layout.own(keep.device, self.segment)
            earlier = (keep & ~own)[..., : whole // kv.size]
            keep = torch.cat((earlier, keep & own), -1)
        kv_count, kv_index = pack_lists(keep, impl=ctx.impl)
        shape = {"q_blocks": plan.layout.q.size, "kv_blocks": kv.size, "causal": plan.causal}
        impl = chosen(ctx, x.q, k, v, **shape)
        return block_sparse_attention(
            x.q, k, v, kv_count, kv_index, **shape, scale=ctx.scale, impl=impl
        )[0]
