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
        heads, dim = x.k.shape[1::2]
        k, group = x.k.transpose(2, 3).flatten(1, 2), x.q.shape[1] // heads
        found, (total, mine) = ctx.weights.get("key_conv.weight"), ctx.held(x.q.shape[1])
        width = found.shape[-1] if found is not None else 3
        weight = ctx.learned("key_conv.weight", total // group * dim, width).to(k.dtype)
        weight = weight[mine.start // group * dim :][: heads * dim]
        mixed = F.conv1d(F.pad(k, (width - 1, 0)), weight[:, None], groups=heads * dim)
        routed = (k + F.silu(mixed)).unflatten(1, (heads, dim)).transpose(2, 3)
        # in a cache of its own: the stages after this one attend to the keys as they are
        return self.gate(x._replace(k=routed), layout, replace(ctx, cache={}))
