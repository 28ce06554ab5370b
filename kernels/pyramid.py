"""Pool key blocks by 2, 4 or 8 tokens, and list the pooled columns that each query block sees.

    k_g = (1 / n_g) sum_{t in g} k_t,    v_g = (1 / n_g) sum_{t in g} v_t,    bias_g = ln n_g

A group g is 2, 4 or 8 neighbours of one block, n_g of them real; groups end with their block, so
that a block has ceil(size / 8) groups of 8, twice as many of 4, and so on. The columns of all
factors stand behind each other, the smallest factor first; a group without a token is 0 with bias
-inf. Sums are float32, or float64 for float64. Used by PSA (arXiv 2512.04025).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Cut, as_cut, block_bounds, check_cut
from dit_sparse.kernels.lists import pack_lists
from dit_sparse.kernels.pool import pick

FACTORS = (2, 4, 8)


def pool_groups(
    k: Tensor,
    v: Tensor,
    blocks: Cut | int,
    factors: tuple[int, ...] = FACTORS,
    *,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the columns k [B, Hkv, C, D], v [B, Hkv, C, Dv] and bias [B or 1, Hkv or 1, C].

    k: [B, Hkv, S, D], v: [B, Hkv, S, Dv] key tokens; blocks: block size or Cut, N blocks of at most
        `size` tokens; factors: some of 2, 4, 8, rising. C = N * ceil(size / 8) * sum(8 / factors).
    bias is float32. One pass over k and v.

    >>> k, v, bias = pool_groups(torch.ones(1, 2, 20, 4), torch.ones(1, 2, 20, 4), 16, (4, 8))
    >>> k.shape, bias[0, 0, 8:].exp()
    (torch.Size([1, 2, 12, 4]), tensor([8., 8., 4., 0.]))
    """
    cut = as_cut(blocks)
    _check_factors(factors)
    if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3] or k.dtype != v.dtype:
        raise ValueError(
            "v must have k's dtype, batch, heads and tokens, [B, H, S, Dv] for [B, H, S, D], got "
            f"{v.dtype} {list(v.shape)} for {k.dtype} {list(k.shape)}"
        )
    check_cut("blocks", cut, k.shape[0], (k.shape[1],))
    if pick(k, impl, v, limit=256) == "triton":
        from dit_sparse.kernels import _pyramid

        return _pyramid.pool_groups(k, v, cut, factors)
    start, end = block_bounds(cut, k.shape[2], k.device)
    # tokens of each pair, real or not: [B or 1, H or 1, N, pairs]
    first = torch.arange(0, -(-cut.size // 8) * 8, 2, device=k.device)
    counts = ((end - start)[..., None] - first).clamp(0, 2)
    bias = [counts.unflatten(-1, (-1, f // 2)).sum(-1).flatten(-2).float().log() for f in factors]
    return _means(k, cut, counts, factors), _means(v, cut, counts, factors), torch.cat(bias, -1)


def level_lists(
    level: Tensor,
    factors: tuple[int, ...] = FACTORS,
    capacity: int | None = None,
    *,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return (count [B, H, M], index [B, H, M, capacity]) int32 of the runs that each row sees.

    level: [B, H, M, N] int8; a block of level l > 1 is seen as its columns of factor 2^(l-1).
    factors: those whose columns exist; capacity: entries of a row, default all that may be.
    Columns are listed in runs of ceil(size / 8) * 8 / max(factors): a block of factor f is
    max(factors) / f neighbouring runs. Ids ascend; a row that sees more loses its highest ones,
    and entries past the count are 0.

    >>> level_lists(torch.tensor([[[[1, 4, 3]]]], dtype=torch.int8), (4, 8))[1].tolist()
    [[[[4, 5, 7, 0, 0, 0]]]]
    """
    _check_factors(factors)
    if level.dim() != 4 or level.dtype != torch.int8:
        got = f"{level.dtype} {list(level.shape)}"
        raise ValueError(f"level must be int8 [B, H, M, N], got {got}")
    # a block is seen by one factor at most
    most = level.shape[-1] * (max(factors) // min(factors))
    capacity = most if capacity is None else capacity
    if not 0 <= capacity <= most:
        raise ValueError(f"capacity must lie in [0, {most}], got {capacity}")
    # one element: the kernel has no limit on the axis that `pick` takes for the head dim
    if pick(level[..., :1], impl) == "triton":
        from dit_sparse.kernels import _pyramid

        return _pyramid.level_lists(level, factors, capacity)
    seen = [(level == f.bit_length()).repeat_interleave(max(factors) // f, -1) for f in factors]
    return pack_lists(torch.cat(seen, -1), capacity, impl="torch")


def _check_factors(factors: tuple[int, ...]) -> None:
    if not factors or not set(factors) <= set(FACTORS) or list(factors) != sorted(set(factors)):
        raise ValueError(f"factors must be some of 2, 4, 8, rising, got {factors!r}")


def _means(x: Tensor, cut: Cut, counts: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Return the means of all factors behind each other, [B, H, C, D] in x's dtype."""
    sums, parts = _pairs(x, cut), []
    for factor in FACTORS[: FACTORS.index(max(factors)) + 1]:
        if factor > 2:
            sums = [s.unflatten(3, (-1, 2)).sum(4) for s in sums]
            counts = counts.unflatten(-1, (-1, 2)).sum(-1)
        if factor in factors:
            done = 0
            for s in sums:
                some = counts[..., done : done + s.shape[2], :, None]
                parts.append((s / some.clamp(min=1)).to(x.dtype).flatten(2, 3))
                done += s.shape[2]
    return torch.cat(parts, 2)


def _pairs(x: Tensor, cut: Cut) -> list[Tensor]:
    """Return the sums of neighbours in each block, [B, H, n, pairs, D] in parts.

    Whole blocks are read in place; others are copied, with zeros up to a multiple of 8.
    """
    wide, tokens, size = torch.promote_types(x.dtype, torch.float32), x.shape[2], cut.size
    if cut.offsets is None and size % 8 == 0:
        whole = tokens // size
        full = x[:, :, : whole * size].unflatten(2, (whole, size // 2, 2))
        parts = [full.sum(4, dtype=wide)] if whole else []
        if tokens % size:
            tail = torch.nn.functional.pad(x[:, :, whole * size :], (0, 0, 0, -tokens % size))
            parts.append(tail.unflatten(2, (1, size // 2, 2)).sum(4, dtype=wide))
        return parts
    start, end = block_bounds(cut, tokens, x.device)
    at = start[..., None] + torch.arange(-(-size // 8) * 8, device=x.device)
    outside = (at >= end[..., None]).flatten(-2)[..., None]
    at = at.clamp(max=tokens - 1).flatten(-2)
    if at.shape[:2] == (1, 1):
        moved = x.index_select(2, at[0, 0])
    else:
        moved = x.gather(2, at[..., None].expand(*x.shape[:2], -1, x.shape[3]))
    moved = moved.masked_fill(outside, 0).unflatten(2, (start.shape[-1], -1, 2))
    return [moved.sum(4, dtype=wide)]
