"""How far keys stay below the best that a query already knows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.core import QKV, Context, Known, Layout, causal_only


@dataclass(frozen=True)
class Anchored:
    """max over blocks t of a query group of scale * qbar_t . k_j - abar_t, [B, H, M, S].

    Query blocks of the layout are groups, key blocks single tokens. Within a group, qbar_t is the
    mean of `block` queries and abar_t that of their anchors, the largest logit of a query over the
    first `initial` keys and the group's own. Those keys score +inf, and all keys do for the
    queries behind the last whole group. float32 or wider. Used by AnchorAttention.
    """

    block: int = 128
    step: int = 16
    initial: int = 128

    def check(self, known: Known) -> None:
        """Raise for what is not causal."""
        causal_only(known.causal, "anchors are the largest logits of a causal window")

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        causal_only(ctx.causal, "anchors are the largest logits of a causal window")
        q, k = x.q.detach(), x.k.detach()
        wide, heads = torch.promote_types(q.dtype, torch.float32), q.shape[1]
        scale = q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale
        group, shift = self.block * self.step, k.shape[2] - q.shape[2]
        score = torch.full(
            (q.shape[0], heads, layout.q.count, k.shape[2]),
            float("inf"),
            dtype=wide,
            device=q.device,
        )
        late = torch.ones(group, group, dtype=torch.bool, device=q.device).triu(1)
        # heads of one key head side by side: [B, Hkv, G, Sq, D]
        q, k = q.unflatten(1, (k.shape[1], -1)).to(wide), k[:, :, None].to(wide)
        for m in range(q.shape[3] // group):
            rows, first = q[..., m * group : (m + 1) * group, :], shift + m * group
            initial = min(self.initial, first)
            own = scale * rows @ k[..., first : first + group, :].mT
            anchor = own.masked_fill(late, float("-inf")).amax(-1)
            if initial:
                known = scale * rows @ k[..., :initial, :].mT
                anchor = torch.maximum(anchor, known.amax(-1))
            mean = rows.unflatten(3, (self.step, self.block)).mean(4)
            below = anchor.unflatten(3, (self.step, self.block)).mean(4)
            margin = scale * mean @ k[..., initial:first, :].mT - below[..., None]
            score[:, :, m, initial:first] = margin.amax(3).flatten(1, 2)
        return score
