"""Scores that a few layers compute and the layers after them use again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.core import QKV, Context, Layout, Score
from dit_sparse.kernels.scores import products


@dataclass(frozen=True)
class Relayed:
    """The scores of the nearest layer of `sources` at or before this one, of the same call.

    A source computes `score` and leaves it in ctx.state["layers"], a dict that all layers of one
    forward pass share; a layer that finds none there, or that comes before all sources, computes
    its own. Used by DELTA, HyLRA.
    """

    score: Score
    sources: tuple[int, ...]

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        shared, before = ctx.state.get("layers", {}), [n for n in self.sources if n <= ctx.layer]
        # lengths: what an aborted pass has left must not be taken for this one's
        key = max(before) if before else -1, layout.q.length, layout.kv.length
        if ctx.layer not in before and key in shared:
            return shared[key]
        score = self.score(x, layout, ctx)
        if before:
            shared[key] = score
        return score


@dataclass(frozen=True)
class PageMass:
    """sum over the keys j of a page of max over all heads of p_tj, [B, H, M, N].

    p is the exact causal attention map of the queries t, one a block. The same for every head.
    float32 or wider. Used by DELTA.
    """

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        q, k, heads = x.q.detach(), x.k.detach(), x.q.shape[1]
        scale = q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale
        logits = scale * products(q, k)
        position = torch.arange(q.shape[2], device=q.device) + k.shape[2] - q.shape[2]
        late = torch.arange(k.shape[2], device=q.device) > position[:, None]
        share = logits.masked_fill(late & ctx.causal, float("-inf")).softmax(-1).amax(1)
        pages = F.pad(share, (0, layout.kv.count * layout.kv.size - k.shape[2]))
        mass = pages.unflatten(2, (-1, layout.kv.size)).sum(3)
        return mass[:, None].expand(-1, heads, -1, -1)
