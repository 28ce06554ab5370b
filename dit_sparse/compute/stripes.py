"""Attention to single keys: runs of them as blocks, the others as listed columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.compute.attend import chosen
from dit_sparse.core import QKV, Context, Plan, on_device
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.attention import block_sparse_attention
from dit_sparse.kernels.contract import Columns, Cut
from dit_sparse.kernels.lists import pack_lists


@dataclass(frozen=True)
class Stripes:
    """Exact attention to the kept keys, in one softmax; the plan's key blocks are single tokens.

    Runs that fill a block of `block` keys, as far as these are visible, are attended to as blocks;
    what is left are columns, gathered one by one. Every block that holds a query's own key is
    whole, so that columns lie in the past of all queries that list them. Query blocks must be
    multiples of `block`. Used by AnchorAttention, MInference.
    """

    block: int = 64

    @on_device
    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        rows, cols = plan.layout
        if cols.size != 1 or cols.order is not None or (rows.count > 1 and rows.size % self.block):
            raise ArgumentError(
                f"compute=Stripes({self.block}) needs key blocks of one token and query blocks of "
                f"a multiple of {self.block}; the layout has {cols.size} and {rows.size}"
            )
        keep, cut = plan.level == 1, self._cut(plan, x.k)
        whole, rest = self._split(keep, plan)
        kv_count, kv_index = pack_lists(whole, impl=ctx.impl)
        count, index = pack_lists(rest, impl=ctx.impl)
        shape = {
            "q_blocks": rows.size,
            "kv_blocks": cut,
            "columns": Columns(x.k, x.v, count=count, index=index),
            "causal": plan.causal,
        }
        impl = chosen(ctx, *x, **shape)
        out, _ = block_sparse_attention(*x, kv_count, kv_index, **shape, scale=ctx.scale, impl=impl)
        return out

    def _lead(self, plan: Plan) -> int:
        """Return the keys before the first cut: cuts stand where query blocks begin."""
        return (plan.layout.kv.length - plan.layout.q.length) % self.block

    def _cut(self, plan: Plan, k: Tensor) -> Cut:
        """Return the cut of the keys into blocks."""
        lead, length = self._lead(plan), plan.layout.kv.length
        if not lead:
            return Cut(self.block)
        steps = torch.arange(lead, length, self.block, dtype=torch.int32, device=k.device)
        ends = F.pad(steps, (1, 1), value=0)
        ends[-1:] = length
        return Cut(self.block, ends[None, None])

    def _split(self, keep: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return the kept whole blocks [B, H, M, N] and the other kept keys [B, H, M, S], bool."""
        rows, length, device = plan.layout.q, plan.layout.kv.length, keep.device
        front = -self._lead(plan) % self.block
        back = -(front + length) % self.block
        free = torch.zeros(1, length, dtype=torch.bool, device=device)
        if plan.causal:
            # what no query of a block sees may be in a list or not
            stop = rows.bounds(device)[0, 0, 1:, None] + length - rows.length
            free = torch.arange(length, device=device) >= stop
        free = F.pad(free, (front, back), value=True).unflatten(-1, (-1, self.block))
        padded = F.pad(keep, (front, back)).unflatten(-1, (-1, self.block))
        whole = (padded | free).all(-1) & padded.any(-1)
        rest = (padded & ~whole[..., None]).flatten(3)[..., front : front + length]
        return whole, rest
