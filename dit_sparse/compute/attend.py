"""From the plan to the output: exact blocks, and a remainder for the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.arranged import arranged, cut, restored
from dit_sparse.compute.remainder import Drop, Remainder
from dit_sparse.core import QKV, Context, Plan
from dit_sparse.kernels.attention import block_sparse_attention, kernel
from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.lists import pack_lists

# queries that choose for themselves are listed in tiles of this many, with the union of their
# choices
TILE = 128


@dataclass(frozen=True)
class Attend:
    """Exact softmax attention over blocks of level 1; `remainder` stands for those of level 0.

    per_token: the plan's query blocks are single tokens, each with its own choice (VMoBA).
    Used by every method but dense.
    """

    remainder: Remainder = Drop()
    per_token: bool = False

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        moved = arranged(x, plan.layout, ctx)
        columns, tail = self.remainder(moved, plan, ctx)
        keep, q_blocks, row_mask = plan.level == 1, cut(plan.layout.q), None
        capacity = plan.capacity
        if self.per_token:
            row_mask, q_blocks, capacity = keep, Cut(TILE), None
            keep = F.pad(keep, (0, 0, 0, -keep.shape[2] % TILE)).unflatten(2, (-1, TILE)).any(3)
        kv_count, kv_index = pack_lists(keep, capacity, impl=ctx.impl)
        shape = {
            "q_blocks": q_blocks,
            "kv_blocks": cut(plan.layout.kv),
            "columns": columns,
            "row_mask": row_mask,
            "causal": plan.causal,
        }
        if not torch.compiler.is_compiling():
            # for the report; a compiler could not trace the questions it asks of the device
            ctx.once("kernel", lambda: kernel(*moved, **shape, impl=ctx.impl))
        out, lse = block_sparse_attention(
            *moved, kv_count, kv_index, **shape, tail=tail, scale=ctx.scale, impl=ctx.impl
        )
        out = self.remainder.finish(out, lse, moved, plan, ctx)
        return restored(out, plan.layout.q, ctx)


@dataclass(frozen=True)
class Dense:
    """Full softmax attention through PyTorch; the plan is not read. Used by dense."""

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        return dense(x, ctx)


def dense(x: QKV, ctx: Context) -> Tensor:
    """Return full attention [B, H, Sq, Dv]; causal means keys j <= i + Skv - Sq."""
    mask = None
    if ctx.causal and x.q.shape[2] != x.k.shape[2]:
        shift = x.k.shape[2] - x.q.shape[2]
        mask = x.q.new_ones(x.q.shape[2], x.k.shape[2], dtype=torch.bool).tril_(shift)
    return F.scaled_dot_product_attention(
        *x,
        attn_mask=mask,
        is_causal=ctx.causal and mask is None,
        scale=ctx.scale,
        enable_gqa=x.q.shape[1] != x.k.shape[1],
    )
