"""Linear attention of query blocks over chosen key blocks, added to the output of exact attention.

    h_j = phi(K_j)^T V_j    H_i = sum_j h_j    O_l = phi(Q_i) H_i / phi(Q_i) . Z_i
    z_j = sum_n phi(k_n)    Z_i = sum_j z_j    O = O_s + O_l W^T + b,  or  a_i O_s + (1 - a_i) O_l

j runs over the key blocks that query block i sees. The sums over j are one product per key head,
seen [M, N] @ h [N, D Dv]: less work than fetching, or taking off the sum of all, the few blocks
left out. User: sla. The Triton passes are in linear_passes.py. 2-byte tensors are multiplied in
bfloat16 (sums over thousands of keys outgrow float16), others in their own type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.kernels.contract import Cut, as_cut, check_cut, per_head
from dit_sparse.kernels.pool import block_ids, pick

PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "elu": lambda x: F.elu(x) + 1,
    "relu": F.relu,
}
# h and H of the heads of one chunk; all heads of a long video at once would fill a GPU
SCRATCH_MB = 1024
# added to the denominator of the sum over all blocks, as SLA's code does
EPS = 1e-5


class Join(NamedTuple):
    """How O_l joins O_s: by weight [Dv, Dv] and bias [Dv] or None, or by alpha [B or 1, H, M]."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    alpha: Tensor | None = None


def add_linear(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None,
    q_blocks: Cut | int,
    kv_blocks: Cut | int,
    join: Join,
    *,
    phi: str = "softmax",
    impl: str = "auto",
) -> Tensor:
    """Return out = O_s with the linear branch O_l added; Triton overwrites `out`.

    out: [B, H, S, Dv], tokens behind the Sq first ones stay; q: [B, H, Sq, D]; k: [B, Hkv, Skv, D],
        v: [B, Hkv, Skv, Dv]; each of their tokens is in a block
    seen: bool [B, H, M, N], which key blocks a query block sees; where it sees none, O_l = 0 and
        alpha counts as 1. None: all of them, with 1e-5 added to the denominator
    Head dims up to 128 in Triton.

    >>> q, v = torch.zeros(1, 1, 2, 4), torch.tensor([1.0, 3.0]).view(1, 1, 2, 1)
    >>> seen = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    >>> add_linear(v, q, q, v, seen, 2, 2, Join(torch.ones(1, 1))).flatten().tolist()
    [3.0, 5.0]
    """
    q_cut, kv_cut = as_cut(q_blocks), as_cut(kv_blocks)
    _check(out, q, k, v, seen, q_cut, kv_cut, join, phi)
    learned = [t[..., None] for t in join if t is not None]
    chosen = pick(q, impl, k, v, out, *learned, limit=128)
    if impl == "triton" and out.stride(-1) != 1:
        raise ValueError(f"impl='triton' cannot run: out has strides {out.stride()}")
    if chosen == "triton" and out.stride(-1) == 1:
        from dit_sparse.kernels import linear_passes

        scratch = SCRATCH_MB * 2**20
        linear_passes.add_linear(out, q, k, v, seen, q_cut, kv_cut, *join, phi, EPS, scratch)
        return out
    dtype = q.dtype
    if impl == "reference":
        dtype = torch.promote_types(dtype, torch.float32)
    elif dtype == torch.float16:
        dtype = torch.bfloat16
    feature = PHI[phi]
    rows, keys, values = feature(q.to(dtype)), feature(k.to(dtype)), v.to(dtype)
    if seen is None:
        branch, mass = _global(rows, keys, values)
    else:
        branch, mass = _masked(rows, keys, values, seen, q_cut, kv_cut)
    if join.alpha is not None:
        alpha = _tokens(join.alpha[..., None, None], q_cut, rows)
        delta = (1 - alpha.where(mass > 0, 1)) * (branch - out[:, :, : q.shape[2]])
    elif join.weight is not None:
        bias = None if join.bias is None else join.bias.to(dtype)
        delta = F.linear(branch, join.weight.to(dtype), bias)
    else:
        delta = branch
    return (out + F.pad(delta, (0, 0, 0, out.shape[2] - q.shape[2]))).to(out.dtype)


def _check(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, q_cut: Cut, kv_cut: Cut,
    join: Join, phi: str,
) -> None:  # fmt: skip
    """Raise one line naming the argument and its value if the call breaks the contract."""
    (batch, heads, tokens, _), groups, dim_v = q.shape, k.shape[1], v.shape[3]
    check_cut("q_blocks", q_cut, batch, (heads,))
    check_cut("kv_blocks", kv_cut, batch, (groups,))
    blocks = q_cut.count(tokens), kv_cut.count(k.shape[2])
    if phi not in PHI:
        raise ValueError(f"phi must be one of {', '.join(PHI)}, got {phi!r}")
    if groups == 0 or heads % groups:
        raise ValueError(f"k must have a head count that divides q's {heads}, got {groups}")
    if join.alpha is not None and join.weight is not None:
        raise ValueError("join must have a weight or alpha, got both")
    rows = out.shape[2]
    if rows < tokens or out.shape != (batch, heads, rows, dim_v):
        raise ValueError(
            f"out must be [{batch}, {heads}, at least {tokens}, {dim_v}], got {list(out.shape)}"
        )
    if seen is not None and (seen.dtype != torch.bool or seen.shape != (batch, heads, *blocks)):
        want = f"bool {[batch, heads, *blocks]}"
        raise ValueError(f"seen must be {want}, got {seen.dtype} {list(seen.shape)}")


def _masked(
    rows: Tensor, keys: Tensor, values: Tensor, seen: Tensor, q_cut: Cut, kv_cut: Cut
) -> tuple[Tensor, Tensor]:
    """Return O_l [B, H, S, Dv] and phi(Q) . Z [B, H, S, 1] with a sum per query block."""
    q_tiles, k_tiles, v_tiles = (
        _tiles(x, cut) for x, cut in ((rows, q_cut), (keys, kv_cut), (values, kv_cut))
    )
    (batch, heads, m), (groups, n) = q_tiles.shape[:3], k_tiles.shape[1:3]
    dim, dim_v, group = keys.shape[-1], values.shape[-1], heads // groups
    size = batch * (n + group * m) * dim * dim_v * keys.element_size()
    step = chunk(groups, size, SCRATCH_MB * 2**20)
    parts, masses = [], []
    for at in range(0, groups, step):
        k, v = k_tiles[:, at : at + step], v_tiles[:, at : at + step]
        mine = slice(at * group, (at + step) * group)
        # [B, g, G * M, N]: the heads of a group share the states of their keys
        choice = seen[:, mine].unflatten(1, (-1, group)).flatten(2, 3).to(keys.dtype)
        state = choice @ (k.mT @ v).flatten(-2)
        norm = choice @ k.sum(-2)
        state = state.view(batch, -1, m, dim, dim_v)
        masses.append(q_tiles[:, mine] @ norm.view(batch, -1, m, dim, 1))
        parts.append(q_tiles[:, mine] @ state)
    mass = torch.cat(masses, 1)
    live = mass > 0
    branch = (torch.cat(parts, 1) / mass.where(live, 1)).where(live, 0)
    return _tokens(branch, q_cut, rows), _tokens(mass, q_cut, rows)


def chunk(heads: int, size: int, scratch: int) -> int:
    """Return how many heads of `size` bytes to take at a time: equal chunks, `scratch` bytes."""
    chunks = -(-heads // max(1, scratch // size))
    return -(-heads // chunks)


def _global(rows: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return O_l [B, H, S, Dv] and phi(Q) . Z [B, H, S, 1] with one sum over all keys."""
    by_group = rows.unflatten(1, (keys.shape[1], -1))
    mass = by_group @ keys.sum(-2)[:, :, None, :, None] + EPS
    branch = by_group @ (keys.mT @ values)[:, :, None] / mass
    return branch.flatten(1, 2), mass.flatten(1, 2)


def _tiles(x: Tensor, cut: Cut) -> Tensor:
    """Return x [B, H, S, D] by block, [B, H, N, n, D], 0 past the end of a block."""
    n = cut.count(x.shape[2])
    if cut.offsets is None:
        return F.pad(x, (0, 0, 0, n * cut.size - x.shape[2])).unflatten(2, (n, cut.size))
    offsets = per_head(cut.offsets.long(), *x.shape[:2])
    at = offsets[..., :-1, None] + torch.arange(cut.size, device=x.device)
    outside = (at >= offsets[..., 1:, None]).flatten(2)[..., None]
    place = at.clamp(max=x.shape[2] - 1).flatten(2)[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, place).masked_fill(outside, 0).unflatten(2, (n, cut.size))


def _tokens(tiles: Tensor, cut: Cut, like: Tensor) -> Tensor:
    """Undo `_tiles`: [B, H, N, n or 1, D] -> [B, H, S, D], S and B those of `like` [B, H, S, .]."""
    tokens = like.shape[2]
    tiles = tiles.expand(*like.shape[:2], -1, cut.size, -1)
    if cut.offsets is None:
        return tiles.flatten(2, 3)[:, :, :tokens]
    ids = block_ids(cut, like)
    first = per_head(cut.offsets.long(), *like.shape[:2]).gather(2, ids)
    place = ids * cut.size + torch.arange(tokens, device=like.device) - first
    return tiles.flatten(2, 3).gather(2, place[..., None].expand(-1, -1, -1, tiles.shape[-1]))
