"""How far a block stays below what its queries have seen before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.arranged import arranged
from dit_sparse.core import QKV, Context, Layout
from dit_sparse.kernels.scores import products
from dit_sparse.kernels.skip import BELOW_PEAK

# numbers of the largest temporary map
SCRATCH = 1 << 26


@dataclass(frozen=True)
class BelowPeak:
    """max over the queries r of block i of m_rj - max_{l <= j} m_rl, [B, H, M, N], at most 0.

    m_rj is the largest logit of query r over the keys of block j that it sees; blocks are visited
    in the order of their keys. It is what an online softmax knows when it meets block j: exp(score)
    bounds its weights there. A single query is one tile with the other heads of its key head: they
    share the largest of their scores. Every logit is computed, some rows at a time, float32 or
    wider.
    Used by BLASST, which leaves them to its kernel wherever that takes the call.
    """

    measure: ClassVar[str] = BELOW_PEAK

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        moved, (rows, cols) = arranged(x, layout, ctx), layout
        q = moved.q[:, :, : rows.video_tokens].detach()
        k = moved.k[:, :, : cols.video_tokens].detach()
        heads, groups = q.shape[1], k.shape[1]
        scale = q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale
        key, shift = torch.arange(k.shape[2], device=q.device), cols.length - rows.length
        step = rows.size * max(
            1, SCRATCH // (q.shape[0] * heads * cols.count * cols.size * rows.size)
        )
        parts, back = [], cols.video * cols.size - k.shape[2]
        for at in range(0, q.shape[2], step):
            logits = scale * products(q[:, :, at : at + step], k)
            count = logits.shape[2]
            if ctx.causal:
                position = torch.arange(at, at + count, device=q.device) + shift
                logits = logits.masked_fill(key > position[:, None], float("-inf"))
            tiles = F.pad(logits, (0, back), value=float("-inf")).unflatten(3, (-1, cols.size))
            peak = tiles.amax(4)
            below = peak - peak.cummax(3).values
            below = F.pad(below, (0, 0, 0, -count % rows.size), value=float("-inf"))
            parts.append(below.unflatten(2, (-1, rows.size)).amax(3))
        score = torch.cat(parts, 2)
        if rows.length > 1 or heads == groups:
            return score
        shared = score.unflatten(1, (groups, -1)).amax(2)
        return shared.repeat_interleave(heads // groups, 1)
