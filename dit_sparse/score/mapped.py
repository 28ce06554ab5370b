"""Block means, compared after learned maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.arranged import arranged, block_means
from dit_sparse.core import QKV, Context, Layout
from dit_sparse.kernels.scores import pooled_scores


@dataclass(frozen=True)
class MappedDot:
    """proj_q(mean of a q block) . proj_k(mean of a k block), [B, H, M, N] float32 or wider.

    learned: the maps are `proj_q.weight` and `proj_k.weight` [D, D] (and a `.bias` [D], if there
    is one) of the layer; without weights, and otherwise, they are the identity. Computed once per
    call and without gradients. Used by SLA (identity), SLA2 (learned).
    """

    learned: bool = False

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        # outside no_grad: the stages after this one share the arranged tensors
        means = block_means(arranged(x, layout, ctx))

        def compare() -> Tensor:
            with torch.no_grad():
                rows, cols = self._mapped(means, ctx)
                return pooled_scores(rows, cols, scale=1.0, impl=ctx.impl)

        return ctx.once(self, compare)

    def _mapped(self, means: tuple[Tensor, Tensor], ctx: Context) -> tuple[Tensor, Tensor]:
        """Return the block means of q [B, H, M, D] and k [B, Hkv, N, D], after the maps."""
        if not (self.learned and ctx.weights):
            return means
        dim, wide, mapped = means[0].shape[-1], means[0].dtype, []
        for name, mean in zip(("proj_q", "proj_k"), means, strict=True):
            mean = F.linear(mean, ctx.learned(f"{name}.weight", dim, dim).to(wide))
            if f"{name}.bias" in ctx.weights:
                mean = mean + ctx.learned(f"{name}.bias", dim).to(wide)
            mapped.append(mean)
        return mapped[0], mapped[1]
