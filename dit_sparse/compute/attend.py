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
from dit_sparse.kernels.attention import block_sparse_attention, implementation, kernel
from dit_sparse.kernels.contract import QUANTS, Cut
from dit_sparse.kernels.decode import decode_attention
from dit_sparse.kernels.lists import pack_lists

# queries that choose for themselves are listed in tiles of this many, with the union of their
# choices
TILE = 128


@dataclass(frozen=True)
class Attend:
    """Exact softmax attention over blocks of level 1; `remainder` stands for those of level 0.

    per_token: the plan's query blocks are single tokens, each with its own choice (VMoBA). quant:
    "none", or "fp8" where a kernel takes the call so (see kernels/quant.py), forward only.
    Used by most methods.
    """

    remainder: Remainder = Drop()
    per_token: bool = False
    quant: str = "none"

    def __post_init__(self) -> None:
        if self.quant not in QUANTS:
            raise ArgumentError(f"quant={self.quant!r} is not known; use {' or '.join(QUANTS)}")

    @on_device
    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        if plan.edge is not None:
            raise ArgumentError("the plan leaves its choice to a compute stage that skips")
        if isinstance(self.remainder, Drop) and self.quant == "none" and decodes(x, plan, ctx):
            return decoded(x, plan, ctx)
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


def decodes(x: QKV, plan: Plan, ctx: Context) -> bool:
    """Tell whether a call is a step of decoding that the kernel for it takes."""
    cols, wanted = plan.layout.kv, torch.is_grad_enabled() and any(t.requires_grad for t in x)
    if x.q.shape[2] > 1 or cols.offsets is not None or cols.order is not None or wanted:
        return False
    name = implementation(x.q)[0] if ctx.impl == "auto" else ctx.impl
    return name == "triton" and not torch.compiler.is_compiling()


def decoded(x: QKV, plan: Plan, ctx: Context) -> Tensor:
    """Return the attention of the one query of each sequence to its kept blocks, [B, H, 1, Dv].

    The heads of a key head read the union of their lists together, and each sees its own.
    """
    keep, groups = plan.level[:, :, 0] == 1, x.k.shape[1]
    shared = keep.unflatten(1, (groups, -1)).any(2)
    lists = pack_lists(shared[:, :, None], impl=ctx.impl)
    ctx.once("kernel", lambda: ("triton", f"one query of each sequence; {implementation(x.q)[1]}"))
    return decode_attention(
        *x,
        *lists,
        page=plan.layout.kv.size,
        choice=None if groups == x.q.shape[1] else keep,
        scale=ctx.scale,
        impl=ctx.impl,
    )[0]


@dataclass(frozen=True)
class Dense:
    """Full softmax attention through PyTorch; the plan is not read. Used by dense."""

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        return dense(x, ctx)


def dense(x: QKV, ctx: Context) -> Tensor:
    """Return full attention [B, H, Sq, Dv]; causal means keys j <= i + Skv - Sq."""
    (queries, keys), mask = (x.q.shape[2], x.k.shape[2]), None
    # a single query sees all keys; PyTorch's `causal_lower_right` could not be compiled
    if ctx.causal and 1 < queries != keys:
        mask = x.q.new_ones(queries, keys, dtype=torch.bool).tril_(keys - queries)
    return F.scaled_dot_product_attention(
        *x,
        attn_mask=mask,
        is_causal=ctx.causal and queries == keys,
        scale=ctx.scale,
        enable_gqa=x.q.shape[1] != x.k.shape[1],
    )
