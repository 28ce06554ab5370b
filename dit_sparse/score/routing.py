"""What becomes of single queries' gates: keys convolved before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from dit_sparse.core import QKV, Context, Layout, Score


@dataclass(frozen=True)
class Convolved:
    """The scores of `gate` for keys k'_t = k_t + silu(sum_i w_i * k_{t-i}), channel by channel.

    Weights: `key_conv.weight` [Hkv * D, W], w_i in column W - 1 - i; without weights k' = k. Only
    the scores see k'. Used by MoBA.
    """

    gate: Score

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        if not ctx.weights:
            return self.gate(x, layout, ctx)
        k = x.k.transpose(2, 3).flatten(1, 2)
        width = ctx.weights["key_conv.weight"].shape[-1] if "key_conv.weight" in ctx.weights else 3
        weight = ctx.learned("key_conv.weight", k.shape[1], width).to(k.dtype)[:, None]
        mixed = F.conv1d(F.pad(k, (width - 1, 0)), weight, groups=k.shape[1])
        routed = (k + F.silu(mixed)).unflatten(1, x.k.shape[1::2]).transpose(2, 3)
        # in a cache of its own: the stages after this one attend to the keys as they are
        return self.gate(x._replace(k=routed), layout, replace(ctx, cache={}))
