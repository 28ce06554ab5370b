"""Pooled attention as probabilities, with the text kept out of the pooling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dit_sparse.arranged import arranged, video_map
from dit_sparse.core import QKV, Context, Layout
from dit_sparse.errors import ArgumentError


@dataclass(frozen=True)
class Isolated:
    """Share of each video block in the attention of a mean query, [B, H, M, N].

    p_ij = c_j exp(z_ij) / (sum_j c_j exp(z_ij) + sum_t exp(z_it)), z = scale * mean(q block) . key
    over the mean keys of blocks of c_j tokens and the single keys of text tokens t. A row sums to
    1 less the share of the text.

    spread: take the mean absolute deviations in the same pass, for a remainder that asks for them.
    Used by Rectified SpaAttn.
    """

    spread: bool = False

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        if ctx.causal:
            raise ArgumentError(
                "causal=True does not go with shares of the whole row, which count future keys; "
                "use a causal method, e.g. 'sla'"
            )
        return video_map(arranged(x, layout, ctx), self.spread).share
