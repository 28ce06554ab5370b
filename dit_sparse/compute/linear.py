"""Linear attention over what the exact blocks leave, as a branch beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.arranged import Arranged, video_cut
from dit_sparse.compute.remainder import Remainder
from dit_sparse.core import Blocks, Context, Plan, Score
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.linear import PHI, Join, add_linear
from dit_sparse.kernels.lists import top_blocks

SCOPES = ("rest", "all")


@dataclass(frozen=True)
class Linear(Remainder):
    """Linear attention O_l of each query block i, added to the exact branch by a learned map.

        H_i = sum_j h_j,   h_j = phi(K_j)^T V_j        O_l = phi(Q_i) H_i / phi(Q_i) . Z_i
        Z_i = sum_j z_j,   z_j = sum_n phi(k_n)        O = O_s + O_l W^T + b

    scope: j runs over the marginal blocks ("rest"): of level 0 and not among the `negligible`
    share of the row that `score` ranks last; a row without any has O_l = 0. Or over all blocks
    ("all"), with 1e-5 added to the denominator. mix: O = alpha O_s + (1 - alpha) O_l instead,
    and O = O_s in rows whose O_l is empty.
    Weights: `proj_l.weight` [Dv, Dv] = W and, if there, `proj_l.bias` [Dv] = b; with mix, `alpha`
    [M], one per query block, or [H, M], or [1]. Without weights nothing is added. Text takes no
    part in it: neither its queries nor its keys. Used by SLA, SLA2 (mix).
    """

    phi: str = "softmax"
    scope: str = "rest"
    mix: bool = False
    negligible: float = 0.0
    score: Score | None = None

    def __post_init__(self) -> None:
        if self.phi not in PHI:
            raise ArgumentError(f"phi={self.phi!r} must be one of {', '.join(PHI)}")
        if self.scope not in SCOPES:
            raise ArgumentError(f"scope={self.scope!r} must be one of {', '.join(SCOPES)}")
        share = self.negligible
        if type(share) not in (int, float) or not 0 <= share < 1:
            raise ArgumentError(f"negligible={share!r} must be at least 0 and below 1, e.g. 0.1")
        if share and self.score is None:
            raise ArgumentError(f"negligible={share!r} needs a score that ranks the blocks")

    def by_block(self, ctx: Context) -> bool:
        return bool(ctx.weights)

    def finish(self, out: Tensor, lse: Tensor, x: Arranged, plan: Plan, ctx: Context) -> Tensor:
        if not ctx.weights:
            return out
        if plan.causal:
            raise ArgumentError(
                "the linear branch takes whole blocks and has no causal form; leave out weights"
            )
        rows, cols = plan.layout
        if self.mix:
            join = Join(alpha=_alpha(ctx, rows, out))
        else:
            dim = out.shape[-1]
            weight = ctx.learned("proj_l.weight", dim, dim)
            has_bias = "proj_l.bias" in ctx.weights
            join = Join(weight, ctx.learned("proj_l.bias", dim) if has_bias else None)
        return add_linear(
            out,
            x.q[:, :, : rows.video_tokens],
            x.k[:, :, : cols.video_tokens],
            x.v[:, :, : cols.video_tokens],
            None if self.scope == "all" else self.marginal(x, plan, ctx),
            video_cut(rows),
            video_cut(cols),
            join,
            phi=self.phi,
            impl=ctx.impl,
        )

    def marginal(self, x: Arranged, plan: Plan, ctx: Context) -> Tensor:
        """Return which video blocks the branch covers, bool [B, H, M, N]."""
        q, kv = plan.layout
        rest = plan.level[..., : q.video, : kv.video] == 0
        # the small term undoes products such as 0.29 * 100 = 28.999...
        count = int(self.negligible * kv.video + 1e-6)
        if not count or self.score is None:
            return rest
        score = self.score(x.given, plan.layout, ctx)
        return rest & (top_blocks(score, kv.video - count, impl=ctx.impl) != 0)


def _alpha(ctx: Context, q: Blocks, out: Tensor) -> Tensor:
    """Return alpha [1, H, M] from its stored form [M], [H, M] or [1]."""
    heads, m = out.shape[1], q.video
    if ctx.grid is not None:
        # also the block of the last video tokens, where that stands with the text
        m = -(-ctx.grid.video // q.size)
    total, mine = ctx.held(heads)
    stored = ctx.weights.get("alpha")
    shape = (m,)
    if stored is not None and (stored.ndim == 2 or tuple(stored.shape) == (1,)):
        shape = (total, m) if stored.ndim == 2 else (1,)
    alpha = ctx.learned("alpha", *shape).to(torch.promote_types(out.dtype, torch.float32))
    return alpha.expand(1, total, m)[:, mine, : q.video]
