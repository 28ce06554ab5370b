"""Give back what block-sparse attention takes: the mass of the dropped blocks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dit_sparse.arranged import Arranged, video_cut, video_map
from dit_sparse.compute.remainder import Remainder
from dit_sparse.core import Context, Plan
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.contract import Columns, per_head
from dit_sparse.kernels.pool import pool_blocks
from dit_sparse.kernels.rectify import gate_blocks, trusted


@dataclass(frozen=True)
class Rectify(Remainder):
    """Scale the sparse output by the mass it should have, and add the pooled rest.

    out_x = R_i out_x + Y_i for the queries x of video block i, with the shares p of the pooled map:
    Y_i = sum over compensated j of p_ij mean(v block j), R_i = 1 - sum over compensated j of p_ij.
    Compensated are the blocks of level 0; with gapr only those of them where the product of the
    means exceeds the estimated error of pooling, and the mass of the others stays with R_i.

    bound: estimate that error by an upper bound instead of the released code's signed products.
    Text queries stay as they are. Used by Rectified SpaAttn (2511.19835).
    """

    gapr: bool = True
    bound: bool = False

    def __call__(
        self, x: Arranged, plan: Plan, ctx: Context
    ) -> tuple[Columns | None, Tensor | None]:
        if plan.causal:
            raise ArgumentError("causal=True does not go with rectify: its mass counts future keys")
        return None, None

    def finish(self, out: Tensor, lse: Tensor, x: Arranged, plan: Plan, ctx: Context) -> Tensor:
        rows, cols = plan.layout
        pooled = video_map(x, self.gapr)
        left = plan.level[..., : rows.video, : cols.video] == 0
        if self.gapr:
            left = left & trusted(pooled, bound=self.bound)
        # a head that is skipped whole stays 0
        left = left & (plan.level != 0).flatten(2).any(-1)[..., None, None]
        share = pooled.share.masked_fill(~left, 0)
        values = pool_blocks(
            x.v[:, :, : cols.video_tokens], video_cut(cols), dtype=share.dtype, impl=ctx.impl
        )
        shift = share @ per_head(values, share.shape[0], share.shape[1])
        gate = 1 - share.sum(-1)
        return gate_blocks(
            out, gate, shift, video_cut(rows), rows.video_tokens, rows.order, impl=ctx.impl
        )
