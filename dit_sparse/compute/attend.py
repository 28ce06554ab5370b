"""From the plan to the output: exact blocks, and a remainder for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.arranged import arranged, cut, restored
from dit_sparse.compute.remainder import Drop, Remainder
from dit_sparse.core import QKV, Context, Plan, on_device
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.attention import block_sparse_attention, kernel
from dit_sparse.kernels.contract import QUANTS, Cut
from dit_sparse.kernels.lists import pack_lists

# queries that choose for themselves are listed in tiles of this many, with the union of their
# choices
TILE = 128


@dataclass(frozen=True)
class Attend:
    """Exact softmax attention over blocks of level 1; `remainder` stands for those of level 0.

    per_token: the plan's query blocks are single tokens, each with its own choice (VMoBA). quant:
    "none", or "fp8" where a kernel takes the call so (see kernels/quant.py), forward only.
    Used by every method but dense.
    """

    remainder: Remainder = Drop()
    per_token: bool = False
    quant: str = "none"

    def __post_init__(self) -> None:
        if self.quant not in QUANTS:
            raise ArgumentError(f"quant={self.quant!r} is not known; use {' or '.join(QUANTS)}")

    @on_device
    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        moved, rows = arranged(x, plan.layout, ctx), plan.layout.q
        columns, tail = self.remainder(moved, plan, ctx)
        q_blocks, row_mask, choice = cut(rows), None, ctx.cache.get("choice")
        if self.per_token:
            row_mask, q_blocks = plan.level == 1, Cut(TILE)
            keep = F.pad(row_mask, (0, 0, 0, -row_mask.shape[2] % TILE))
            lists = pack_lists(keep.unflatten(2, (-1, TILE)).any(3), impl=ctx.impl)
        elif choice is not None and choice[0] is plan.level:
            lists = choice[1:]
        else:
            lists = pack_lists(plan.level, plan.capacity, level=1, impl=ctx.impl)
        # the kernel reads queries where they are, unless something else needs them side by side
        together = self.per_token or self.remainder.by_block(ctx)
        order = None if together else rows.order
        tensors = (moved.q if order is None else x.q, moved.k, moved.v)
        shape = {
            "q_blocks": q_blocks,
            "kv_blocks": cut(plan.layout.kv),
            "columns": columns,
            "row_mask": row_mask,
            "causal": plan.causal,
        }
        name = chosen(ctx, *tensors, **shape, quant=self.quant)
        # left to choose, a kernel may leave fp8 out; asked for, it may not
        impl = name if self.quant == "none" else ctx.impl
        out, lse = block_sparse_attention(
            *tensors, *lists, **shape, tail=tail, q_order=order, scale=ctx.scale, impl=impl,
            quant=self.quant,
        )  # fmt: skip
        out = self.remainder.finish(out, lse, moved, plan, ctx)
        return restored(out, rows, ctx) if together else out


def chosen(ctx: Context, *tensors: Tensor, **shape: Any) -> str:
    """Return the kernel that runs a call, and leave it with its reason for the report.

    tensors: q, k, v; shape: what else `kernel` asks. While a model is compiled it is what the call
    was asked for: a compiler could not trace the questions to the device.
    """
    if torch.compiler.is_compiling():
        return ctx.impl
    return ctx.once("kernel", lambda: kernel(*tensors, **shape, impl=ctx.impl))[0]


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
