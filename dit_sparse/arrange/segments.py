"""Keys sorted inside segments by what the last queries attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dit_sparse.core import QKV, Blocks, Context, Known, Layout, causal_only
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.scores import products
from dit_sparse.parameters import check_count


@dataclass(frozen=True)
class SortedSegments:
    """Blocks of `block` tokens; the keys of each whole segment ordered by falling importance.

        s_j = mean over the last `block` queries of softmax_j(scale q . k_j), causal

    Keys behind the last whole segment, and queries, keep their order. One order per query head, or
    per key head with grouped, by the mean of its heads. Used by PBS-Attn.
    """

    segment: int = 256
    block: int = 128
    grouped: bool = False

    def __post_init__(self) -> None:
        check_count("block", self.block)
        check_count("segment", self.segment)
        if self.segment % self.block:
            raise ArgumentError(f"segment={self.segment} must be a multiple of block={self.block}")

    def check(self, known: Known) -> None:
        """Raise for what is not causal."""
        causal_only(known.causal, "segments that see one another are those of causal attention")

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        causal_only(ctx.causal, "segments that see one another are those of causal attention")
        plain = Layout.uniform(x, self.block)
        length, whole = x.k.shape[2], x.k.shape[2] // self.segment * self.segment
        if length <= self.segment:
            return plain
        q, k = x.q[:, :, -self.block :].detach(), x.k[:, :, :whole].detach()
        scale = q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale
        # [B, H, rows, whole]
        logits = scale * products(q, k)
        last = torch.arange(length - q.shape[2], length, device=q.device)
        late = torch.arange(whole, device=q.device) > last[:, None]
        share = logits.masked_fill(late, float("-inf")).softmax(-1).mean(-2)
        if self.grouped:
            share = share.unflatten(1, (k.shape[1], -1)).mean(2)
        order = share.unflatten(2, (-1, self.segment)).argsort(dim=-1, descending=True, stable=True)
        order = order + torch.arange(0, whole, self.segment, device=q.device)[:, None]
        rest = torch.arange(whole, length, device=q.device).expand(*order.shape[:2], -1)
        order = torch.cat((order.flatten(2), rest), 2)
        return Layout(plain.q, Blocks.uniform(length, self.block, order))
