"""What becomes of single queries' gates: keys convolved before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from dit_sparse.core import QKV, Context, Layout, Score


@dataclass(frozen=True)
class Convolved:
    """The scores of `gate` for keys k'_t = k_t + silu(sum_i w_i * k_{t-i}), channel by channel.

    Weights: `key_conv.weight` [Hkv * D, W], of all heads of the model, w_i in column W - 1 - i;
    without weights k' = k. Only the scores see k'. Used by MoBA.
    """

    gate: Score

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        if not ctx.weights:
            return self.gate(x, layout, ctx)
        k, width = x.k.transpose(2, 3).flatten(1, 2), 3
        if "key_conv.weight" in ctx.weights:
            width = ctx.weights["key_conv.weight"].shape[-1]
        (total, mine), group = ctx.held(x.q.shape[1]), x.q.shape[1] // x.k.shape[1]
        weight = ctx.learned("key_conv.weight", total // group * x.k.shape[3], width).to(k.dtype)
        weight = weight.unflatten(0, (-1, x.k.shape[3]))[mine.start // group : mine.stop // group]
        mixed = F.conv1d(F.pad(k, (width - 1, 0)), weight.flatten(0, 1)[:, None], groups=k.shape[1])
        routed = (k + F.silu(mixed)).unflatten(1, x.k.shape[1::2]).transpose(2, 3)
        # in a cache of its own: the stages after this one attend to the keys as they are
        return self.gate(x._replace(k=routed), layout, replace(ctx, cache={}))
