"""Linear attention over what the exact blocks leave, as a branch beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.arranged import video_cut
from dit_sparse.compute.remainder import Remainder
from dit_sparse.core import QKV, Blocks, Context, Plan, Score
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.contract import per_head
from dit_sparse.kernels.lists import top_blocks
from dit_sparse.kernels.pool import block_ids

PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "elu": lambda x: F.elu(x) + 1,
    "relu": F.relu,
}
SCOPES = ("rest", "all")
# the states of the heads of one chunk; all heads of a long video at once would fill a GPU
SCRATCH_MB = 256


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

    def finish(self, out: Tensor, lse: Tensor, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        if not ctx.weights:
            return out
        if plan.causal:
            raise ArgumentError(
                "the linear branch takes whole blocks and has no causal form; leave out weights"
            )
        q, kv = plan.layout
        dtype = x.q.dtype
        if ctx.impl == "reference":
            dtype = torch.promote_types(dtype, torch.float32)
        elif dtype == torch.float16:
            # sums over thousands of keys outgrow float16
            dtype = torch.bfloat16
        phi = PHI[self.phi]
        rows = phi(x.q[:, :, : q.video_tokens].to(dtype))
        keys = phi(x.k[:, :, : kv.video_tokens].to(dtype))
        values = x.v[:, :, : kv.video_tokens].to(dtype)
        if self.scope == "all":
            branch, mass = _global(rows, keys, values)
        else:
            branch, mass = _masked(rows, keys, values, self.marginal(x, plan, ctx), q, kv)
        exact = out[:, :, : q.video_tokens]
        if self.mix:
            alpha = _tokens(_alpha(ctx, q, out)[..., None, None], q, rows)
            delta = (1 - alpha.where(mass > 0, 1)) * (branch - exact)
        else:
            dim = values.shape[-1]
            delta = F.linear(branch, ctx.learned("proj_l.weight", dim, dim).to(dtype))
            if "proj_l.bias" in ctx.weights:
                delta = delta + ctx.learned("proj_l.bias", dim).to(dtype)
        return (out + F.pad(delta, (0, 0, 0, q.text_tokens))).to(out.dtype)

    def marginal(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        """Return which video blocks the branch covers, bool [B, H, M, N]."""
        q, kv = plan.layout
        rest = plan.level[..., : q.video, : kv.video] == 0
        # the small term undoes products such as 0.29 * 100 = 28.999...
        count = int(self.negligible * kv.video + 1e-6)
        if not count or self.score is None:
            return rest
        score = self.score(x, plan.layout, ctx)
        return rest & (top_blocks(-score, count, impl=ctx.impl) == 0)


def _masked(
    rows: Tensor, keys: Tensor, values: Tensor, marginal: Tensor, q: Blocks, kv: Blocks
) -> tuple[Tensor, Tensor]:
    """Return O_l [B, H, S, Dv] and phi(Q) . Z [B, H, S, 1] with a sum per query block.

    The sums over blocks are one product per head, marginal [M, N] @ h [N, D Dv]: less work than
    fetching the few blocks left out for every row, and nothing to fetch.
    """
    q_tiles, k_tiles, v_tiles = _tiles(rows, q), _tiles(keys, kv), _tiles(values, kv)
    (batch, heads, m), (groups, n) = q_tiles.shape[:3], k_tiles.shape[1:3]
    dim, dim_v, group = keys.shape[-1], values.shape[-1], heads // groups
    size = batch * (n + group * m) * dim * dim_v * keys.element_size()
    step = max(1, SCRATCH_MB * 2**20 // size)
    parts, masses = [], []
    for at in range(0, groups, step):
        k, v = k_tiles[:, at : at + step], v_tiles[:, at : at + step]
        mine = slice(at * group, (at + step) * group)
        # [B, g, G * M, N]: the heads of a group share the states of their keys
        seen = marginal[:, mine].unflatten(1, (-1, group)).flatten(2, 3).to(keys.dtype)
        state = seen @ (k.mT @ v).flatten(-2)
        norm = seen @ k.sum(-2)
        state = state.view(batch, -1, m, dim, dim_v)
        masses.append(q_tiles[:, mine] @ norm.view(batch, -1, m, dim, 1))
        parts.append(q_tiles[:, mine] @ state)
    mass = torch.cat(masses, 1)
    live = mass > 0
    branch = (torch.cat(parts, 1) / mass.where(live, 1)).where(live, 0)
    return _tokens(branch, q, rows), _tokens(mass, q, rows)


def _global(rows: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return O_l [B, H, S, Dv] and phi(Q) . Z [B, H, S, 1] with one sum over all keys."""
    by_group = rows.unflatten(1, (keys.shape[1], -1))
    mass = by_group @ keys.sum(-2)[:, :, None, :, None] + 1e-5
    branch = by_group @ (keys.mT @ values)[:, :, None] / mass
    return branch.flatten(1, 2), mass.flatten(1, 2)


def _alpha(ctx: Context, q: Blocks, out: Tensor) -> Tensor:
    """Return alpha [1, H, M] from its stored form [M], [H, M] or [1]."""
    heads, m = out.shape[1], q.video
    stored = ctx.weights.get("alpha")
    shape = (m,)
    if stored is not None and (stored.ndim == 2 or tuple(stored.shape) == (1,)):
        shape = (heads, m) if stored.ndim == 2 else (1,)
    alpha = ctx.learned("alpha", *shape).to(torch.promote_types(out.dtype, torch.float32))
    return alpha.expand(1, heads, m)


def _tiles(x: Tensor, blocks: Blocks) -> Tensor:
    """Return x [B, H, S, D] by video block, [B, H, N, n, D], 0 past the end of a block."""
    cut, n = video_cut(blocks), blocks.video
    if cut.offsets is None:
        return F.pad(x, (0, 0, 0, n * cut.size - x.shape[2])).unflatten(2, (n, cut.size))
    offsets = per_head(cut.offsets.long(), *x.shape[:2])
    at = offsets[..., :-1, None] + torch.arange(cut.size, device=x.device)
    outside = (at >= offsets[..., 1:, None]).flatten(2)[..., None]
    place = at.clamp(max=x.shape[2] - 1).flatten(2)[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, place).masked_fill(outside, 0).unflatten(2, (n, cut.size))


def _tokens(tiles: Tensor, blocks: Blocks, like: Tensor) -> Tensor:
    """Undo `_tiles`: [B, H, N, n or 1, D] -> [B, H, S, D], S and B those of `like` [B, H, S, .]."""
    cut, tokens = video_cut(blocks), like.shape[2]
    tiles = tiles.expand(*like.shape[:2], -1, cut.size, -1)
    if cut.offsets is None:
        return tiles.flatten(2, 3)[:, :, :tokens]
    ids = block_ids(cut, like)
    first = per_head(cut.offsets.long(), *like.shape[:2]).gather(2, ids)
    place = ids * cut.size + torch.arange(tokens, device=like.device) - first
    return tiles.flatten(2, 3).gather(2, place[..., None].expand(-1, -1, -1, tiles.shape[-1]))
