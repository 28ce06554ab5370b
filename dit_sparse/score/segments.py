"""Scores of the blocks of earlier segments."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.core import QKV, Context, Layout, Score


@dataclass(frozen=True)
class EarlierSegments:
    """The scores of `score` where a key block's segment lies before the query block's, else 0.

    softmax: of each row over these blocks; a row without any is 0. ctx.cache["forced"] tells
    select what to keep in any case, bool [B, H, M, N]: the blocks of the own segment, and the one
    that holds the first token now. Used by PBS-Attn.
    """

    score: Score
    segment: int = 256
    softmax: bool = True

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        score = self.score(x, layout, ctx)
        own, ends = layout.own(score.device, self.segment), layout.kv.bounds(score.device)[..., 1:]
        shift = layout.kv.length - layout.q.length
        first = layout.q.bounds(score.device)[..., :-1, None] + shift
        hidden = own | (ends[..., None, :] > first)
        if self.softmax:
            score = score.masked_fill(hidden, float("-inf"))
            empty = hidden.all(-1, keepdim=True)
            score = score.masked_fill(empty, 0).softmax(-1)
        order = layout.kv.order
        forced = own
        if order is not None:
            # the place of the first token, within the first segment
            place = order[..., : self.segment].argmin(-1) // layout.kv.size
            place = place.repeat_interleave(score.shape[1] // place.shape[1], 1)
            sink = torch.arange(score.shape[3], device=score.device) == place[..., None]
            forced = own | sink[:, :, None]
        ctx.once("forced", lambda: forced)
        return score.masked_fill(hidden & ~score.isnan(), 0)
