"""Pool tokens by block: means or sums, and PISA's covariances, each in one pass over the data.

    mean_j = (1 / n_j) sum_{t in j} x_t,    H_j = sum_{t in j} (k_t - kbar_j)^T v_t,    Hsum =
    sum_j H_j

n_j counts real tokens only (a short last block, clusters of any size; an empty block pools to 0).
Users: every method with pooled scores (draft, pisa, vsa, ...), pooled remainders, centroids.
Accumulation in float32.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from dit_sparse.kernels.attention import implementation
from dit_sparse.kernels.contract import IMPLS, Cut, as_cut, block_bounds, check_cut, per_head


def pick(x: Tensor, impl: str, *moved: Tensor, limit: int = 1 << 30) -> str:
    """Return "triton" or "torch" for a one-pass tool; `auto` takes torch where a compiler traces
    the call, where gradients are wanted, and above the largest head dim `limit`.

    The torch form is also the reference: it sums in float32, or in float64 for float64.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be {', '.join(IMPLS)}, got {impl!r}")
    if impl == "reference":
        return "torch"
    tensors = (x, *moved)
    why_not = ""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        why_not = "the one-pass kernels have no backward"
    elif max(t.shape[-1] for t in tensors) > limit:
        why_not = f"the head dim is above {limit}"
    if impl == "auto":
        if torch.compiler.is_compiling() or why_not:
            return "torch"
        return implementation(x)[0]
    if impl == "triton" and not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        why_not = f"it needs a CUDA tensor, got {x.device.type}"
    if impl == "triton" and why_not:
        raise ValueError(f"impl='triton' cannot run: {why_not}")
    return impl


def _check(name: str, x: Tensor, cut: Cut) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"{name} must be a floating 4-D tensor [B, H, S, D], got {x.dtype} {list(x.shape)}"
        )
    check_cut("blocks", cut, x.shape[0], (x.shape[1],))


def block_ids(cut: Cut, x: Tensor) -> Tensor:
    """Return each token's block id, int64 [B, H, S]; N where a token is in no block."""
    position = torch.arange(x.shape[2], device=x.device)
    if cut.offsets is None:
        return (position // cut.size).expand(x.shape[:3])
    offsets = per_head(cut.offsets.long(), x.shape[0], x.shape[1]).contiguous()
    ids = torch.searchsorted(offsets, position.expand(x.shape[:3]).contiguous(), right=True) - 1
    return ids.where(ids >= 0, offsets.shape[-1] - 1)


def _sums(x: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """Return block sums [B, H, N, D] in float32 (float64 for float64) and sizes [B, H, N, 1] by
    torch."""
    batch, heads, tokens, dim = x.shape
    n, wide = cut.count(tokens), torch.promote_types(x.dtype, torch.float32)
    if cut.offsets is None:
        full = tokens // cut.size
        total = x[:, :, : full * cut.size].unflatten(2, (full, cut.size)).sum(3, dtype=wide)
        if full < n:
            total = torch.cat(
                (total, x[:, :, full * cut.size :].sum(2, keepdim=True, dtype=wide)), 2
            )
        size = torch.full((n,), cut.size, device=x.device, dtype=wide)
        size[-1:] = tokens - (n - 1) * cut.size
        return total, size[:, None].expand(batch, heads, n, 1)
    ids = block_ids(cut, x)[..., None]
    value = x.to(wide).masked_fill(ids == n, 0)
    total = value.new_zeros(batch, heads, n + 1, dim).scatter_add(2, ids.expand_as(x), value)
    return total[:, :, :n], (cut.offsets[..., 1:] - cut.offsets[..., :-1]).expand(batch, heads, n)[
        ..., None
    ].to(wide)


def pool_blocks(
    x: Tensor, blocks: Cut | int, order: Tensor | None = None, *, reduce: str = "mean", dtype:
    torch.dtype | None = None, impl: str = "auto",
) -> Tensor:  # fmt: skip
    """Return the mean (or sum) of every block of tokens.

    x: [B, H, S, D]; blocks: block size or Cut; order: integer [B or 1, H or 1, T] pools the T
        tokens x[order] without writing them
    reduce: mean or sum; dtype: of the result, default x's; returns [B, H, N, D]

    >>> pool_blocks(torch.ones(1, 2, 100, 8), 64).shape
    torch.Size([1, 2, 2, 8])
    """
    cut = as_cut(blocks)
    _check("x", x, cut)
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce must be mean or sum, got {reduce!r}")
    dtype = dtype or x.dtype
    if pick(x, impl) == "triton":
        from dit_sparse.kernels._tokens import Job, new_mean, token_pass

        mean = new_mean(x, cut, (x if order is None else order).shape[2], dtype)
        token_pass([Job(x, order, cut, None, mean, is_sum=reduce == "sum")])
        return mean
    if order is not None:
        from dit_sparse.kernels.permute import rows_at

        x = rows_at(x, order)
    total, size = _sums(x, cut)
    return (total / size.clamp(min=1) if reduce == "mean" else total).to(dtype)


def block_covariances(
    k: Tensor, v: Tensor, k_mean: Tensor, v_mean: Tensor, blocks: Cut | int, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return PISA's Hsum [B, H, D, Dv] and the Frobenius norms |H_j| [B, H, N] (arXiv 2602.01077),
    float32.

    k: [B, H, S, D], v: [B, H, S, Dv] (kv heads); k_mean: [B, H, N, D], v_mean: [B, H, N, Dv], of
        the blocks, float32; blocks: block size or Cut. Head dims up to 128 in triton.
    """
    cut = as_cut(blocks)
    _check("k", k, cut)
    _check("v", v, cut)
    if pick(k, impl, v, limit=128) == "triton":
        from dit_sparse.kernels import passes

        return passes.block_covariances(k, v, k_mean, v_mean, cut)
    n, tokens, wide = cut.count(k.shape[2]), k.shape[2], k_mean.dtype
    if cut.offsets is None:
        whole, found = tokens // cut.size, []
        for first, stop, length in ((0, whole, cut.size), (whole, n, tokens - whole * cut.size)):
            if first < stop:
                at = slice(first * cut.size, first * cut.size + (stop - first) * length)
                a, b = (x[:, :, at].unflatten(2, (stop - first, length)).to(wide) for x in (k, v))
                found.append(_covariances(a - k_mean[:, :, first:stop, None], b))
        sums, norms = zip(*found, strict=True)
        return torch.stack(sums).sum(0), torch.cat(norms, 2)
    # gather every block into a padded tile of the static maximum size
    start, end = (per_head(x, *k.shape[:2]) for x in block_bounds(cut, tokens, k.device))
    at = start[..., None] + torch.arange(cut.size, device=k.device)
    outside = (at >= end[..., None])[..., None]
    at = at.clamp(max=tokens - 1).flatten(2)[..., None]
    a, b = (
        x.gather(2, at.expand(*at.shape[:3], x.shape[3])).unflatten(2, (n, cut.size)).to(wide)
        for x in (k, v)
    )
    a, b = ((x - mean).masked_fill(outside, 0) for x, mean in ((a, k_mean[:, :, :, None]), (b, 0)))
    return _covariances(a, b)


def _covariances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum_j a_j^T b_j [B, H, D, Dv] and each |a_j^T b_j| [B, H, N], of tiles [B, H, N, n,
    D]."""
    if a.shape[3] >= min(a.shape[4], b.shape[4]):
        h = a.mT @ b
        return h.sum(2), h.flatten(3).norm(dim=-1)
    # |a^T b|^2 = sum (a a^T) * (b b^T): n x n instead of D x Dv
    square = ((a @ a.mT) * (b @ b.mT)).sum((3, 4))
    return a.flatten(2, 3).mT @ b.flatten(2, 3), square.clamp(min=0).sqrt()
