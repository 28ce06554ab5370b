"""Estimate the importance of each block pair from a sample of its tokens (PSA, arXiv 2512.04025).

    S_ij = max over sampled q in i, k in j of exp(scale q.k - z_q),    z_q = ln sum_k exp(scale q.k)

The sum runs over all sampled keys. reduce="mean" averages over the pairs of a block pair instead;
norm="max" takes z_q = max_k scale q.k, as PSA's released code does. Used by PSA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.contract import IMPLS, as_scale
from dit_sparse.kernels.pool import pick

# bytes of logits alive at a time in the torch form
_LOGITS = 64 << 20


def sampled_importance(
    q: Tensor,
    k: Tensor,
    q_count: Tensor,
    k_count: Tensor,
    *,
    scale: float | None = None,
    reduce: str = "max",
    norm: str = "sum",
    impl: str = "auto",
) -> Tensor:
    """Return the importance [B, H, M, N] of each block pair, float32 (float64 for float64).

    q: [B, H, M * s, D] s sampled queries per block; k: [B, Hkv, N * t, D] t sampled keys per block
    q_count: [B or 1, H or 1, M] int32, k_count: [B or 1, Hkv or 1, N] int32, how many of a block's
        samples are real; they come first, the others are ignored. A block without any gives 0.
    Not differentiable. One opaque op for a compiler.

    >>> count = torch.full((1, 1, 4), 8, dtype=torch.int32)
    >>> sampled_importance(torch.ones(1, 2, 32, 16), torch.ones(1, 2, 32, 16), count, count).shape
    torch.Size([1, 2, 4, 4])
    """
    scale = as_scale(scale, q.shape[-1])
    return torch.ops.dit_sparse.sampled_importance(
        q.detach(), k.detach(), q_count, k_count, scale, reduce, norm, impl
    )


def _check(q, k, q_count, k_count, scale, reduce, norm, impl) -> None:
    """Raise one line naming the argument and its value if the call breaks the contract."""
    for name, value, allowed in (
        ("reduce", reduce, ("max", "mean")),
        ("norm", norm, ("sum", "max")),
        ("impl", impl, IMPLS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be {', '.join(allowed)}, got {value!r}")
    for name, x, count in (("q", q, q_count), ("k", k, k_count)):
        if x.dim() != 4 or not x.is_floating_point():
            got = f"{x.dtype} {list(x.shape)}"
            raise ValueError(f"{name} must be a floating 4-D tensor [B, H, S, D], got {got}")
        ok = count.dim() == 3 and count.dtype == torch.int32 and count.shape[-1] > 0
        ok = ok and count.shape[0] in (1, x.shape[0]) and count.shape[1] in (1, x.shape[1])
        if not ok or x.shape[2] % count.shape[-1] or x.shape[2] == 0:
            got = f"{count.dtype} {list(count.shape)} for {list(x.shape)}"
            raise ValueError(
                f"{name}_count must be int32 [B or 1, H or 1, blocks], where blocks divides "
                f"{name}'s tokens, got {got}"
            )
    if k.dtype != q.dtype or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"k must have q's dtype, batch and head dim, got {k.dtype} {list(k.shape)} for "
            f"{q.dtype} {list(q.shape)}"
        )
    if q.shape[1] % k.shape[1]:
        got = f"{k.shape[1]} for {q.shape[1]}"
        raise ValueError(f"k must have a head count that divides q's, got {got}")


@torch.library.custom_op("dit_sparse::sampled_importance", mutates_args=())
def _importance_op(
    q: Tensor, k: Tensor, q_count: Tensor, k_count: Tensor, scale: float, reduce: str, norm: str,
    impl: str,
) -> Tensor:  # fmt: skip
    _check(q, k, q_count, k_count, scale, reduce, norm, impl)
    samples = max(q.shape[2] // q_count.shape[-1], k.shape[2] // k_count.shape[-1])
    if pick(q, impl, k, limit=256) == "triton" and samples <= 128:
        from dit_sparse.kernels import importance_triton

        return importance_triton.sampled_importance(q, k, q_count, k_count, scale, reduce, norm)
    if impl == "triton":
        raise ValueError(f"impl='triton' takes up to 128 samples per block, got {samples}")
    return _by_torch(q, k, q_count, k_count, scale, reduce, norm)


@_importance_op.register_fake
def _importance_fake(q, k, q_count, k_count, scale, reduce, norm, impl):
    _check(q, k, q_count, k_count, scale, reduce, norm, impl)
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(*q.shape[:2], q_count.shape[-1], k_count.shape[-1], dtype=wide)


def _by_torch(
    q: Tensor, k: Tensor, q_count: Tensor, k_count: Tensor, scale: float, reduce: str, norm: str
) -> Tensor:
    """Compute the importance over chunks of query blocks; on any device, also the reference."""
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, heads, kv_heads = *q.shape[:2], k.shape[1]
    rows, cols = q_count.shape[-1], k_count.shape[-1]
    s, t = q.shape[2] // rows, k.shape[2] // cols
    q_seen = (torch.arange(s, device=q.device) < q_count[..., None]).expand(batch, heads, -1, -1)
    k_seen = torch.arange(t, device=k.device) < k_count[..., None]
    k_seen = k_seen.expand(batch, kv_heads, -1, -1)
    # kv heads of one group stand beside each other: [B, Hkv, group, ...]
    q, q_seen = (x.unflatten(1, (kv_heads, -1)) for x in (q.to(wide) * scale, q_seen))
    hidden = ~k_seen.flatten(2)[:, :, None, None]
    keys = k.to(wide).mT[:, :, None]
    pairs = q_count[..., :, None] * _grouped(k_count, heads)[..., None, :]
    chunk = max(1, _LOGITS // (batch * heads * s * cols * t * wide.itemsize))
    parts = []
    for first in range(0, rows, chunk):
        last = min(first + chunk, rows)
        # logits: [B, Hkv, group, rows * s, cols * t]
        logits = (q[:, :, :, first * s : last * s] @ keys).masked_fill_(hidden, float("-inf"))
        z = logits.logsumexp(-1) if norm == "sum" else logits.amax(-1)
        # a query that is no token weighs nothing
        z = z.masked_fill(~q_seen[:, :, :, first:last].flatten(-2), float("inf"))[..., None, None]
        logits = logits.unflatten(-1, (cols, t))
        p = (logits.amax(-1, keepdim=True) if reduce == "max" else logits).sub(z).exp_()
        p = p.sum(-1) if reduce == "mean" else p[..., 0]
        p = p.unflatten(-2, (-1, s))
        parts.append(p.amax(-2) if reduce == "max" else p.sum(-2))
    out = torch.cat(parts, -2).flatten(1, 2)
    return out / pairs.clamp(min=1) if reduce == "mean" else out


def _grouped(count: Tensor, heads: int) -> Tensor:
    """Repeat counts of kv heads for the query heads of their group."""
    return count if count.shape[1] == 1 else count.repeat_interleave(heads // count.shape[1], 1)
