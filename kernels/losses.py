"""What masks lose on a sample of queries: the choice between two sparse patterns (SVG, 2502.01776).

    L_m = mean over sampled queries r and dims of |o_m(r) - o(r)|^2,
    o(r) = softmax(scale q_r K^T) V,    o_m(r) the same over the keys that mask m shows to r

Two masks, the same for all heads, as one bit for each query and key. A query that sees nothing has
the output 0. float32 arithmetic (float64 for float64); the Triton kernel multiplies in the tensors'
own dtype, as attention does. Users: svg.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.contract import as_scale, per_head
from dit_sparse.kernels.pool import pick

# bytes of logits and of wide keys and values at a time in the torch form: it takes heads in groups
_SCRATCH = 512 << 20
_PIECE = 1024  # keys of one product


def pack_keys(seen: Tensor) -> Tensor:
    """Return a bool mask [..., S] as int32 [..., 2 * ceil(S / 64)]; bit n of word w is key 32w + n.

    >>> pack_keys(torch.tensor([[True, False, True, True]])).tolist()
    [[13, 0]]
    """
    octets = torch.nn.functional.pad(seen, (0, -seen.shape[-1] % 64)).byte().unflatten(-1, (-1, 8))
    return (octets << _places(seen.device)).sum(-1, dtype=torch.uint8).view(torch.int32)


def _unpack(words: Tensor, keys: int) -> Tensor:
    """Return the bool mask [..., keys] that `pack_keys` packed."""
    octets = words.contiguous().view(torch.uint8)[..., None]
    return (octets >> _places(words.device) & 1).flatten(-2)[..., :keys].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


@torch.no_grad()
def masked_losses(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, seen: Tensor, *, scale: float | None = None,
    impl: str = "auto",
) -> Tensor:  # fmt: skip
    """Return the losses of two masks, [2, B, H] float32 (float64 for float64).

    q: [B, H, Sq, D]; k: [B, Hkv, S, D], v: [B, Hkv, S, Dv], kv head = q head // (H // Hkv)
    rows: [R] int64, the sampled queries, in [0, Sq), not checked; seen: [2, R, W] int32, the keys
        that each mask shows to each of them, from `pack_keys`
    scale: default D ** -0.5; impl: auto, triton (head dims up to 256, of float32 128; no float64),
        torch or reference

    >>> q, k, v = torch.randn(3, 1, 4, 100, 16)
    >>> seen = pack_keys(torch.stack([torch.ones(9, 100), torch.ones(9, 100).triu()]).bool())
    >>> losses = masked_losses(q, k, v, torch.arange(9), seen)
    >>> losses.shape, losses[0].abs().max().item() < 1e-9, bool((losses[1] > 1e-9).all())
    (torch.Size([2, 1, 4]), True, True)
    """
    _check(q, k, v, rows, seen)
    factor = as_scale(scale, q.shape[-1])
    if pick(q, impl, k, v, limit=256 if q.element_size() == 2 else 128) == "triton":
        if q.dtype == torch.float64:
            raise ValueError(f"q must not be float64 for impl='triton', got {q.dtype}")
        from dit_sparse.kernels import _losses

        return _losses.masked_losses(q, k, v, rows, seen, factor)
    return _by_torch(q, k, v, rows, _unpack(seen, k.shape[2]), factor)


def _check(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, seen: Tensor) -> None:
    """Raise one line that names the argument and its value if the call breaks the contract."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4 or not x.is_floating_point() or x.dtype != q.dtype:
            got = f"{x.dtype} {list(x.shape)}"
            raise ValueError(f"{name} must be 4-D [B, H, S, D] in q's floating dtype, got {got}")
    (batch, heads, _, dim), (kv_batch, kv_heads, tokens, kv_dim) = q.shape, k.shape
    if (kv_batch, kv_dim) != (batch, dim) or heads % kv_heads:
        want = f"[{batch}, a divisor of {heads}, S, {dim}]"
        raise ValueError(f"k must be {want} for q {list(q.shape)}, got {list(k.shape)}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v must be {list(k.shape[:3])} + [Dv], as k, got {list(v.shape)}")
    if rows.dim() != 1 or rows.dtype != torch.int64 or not len(rows):
        raise ValueError(f"rows must be int64 [R], R >= 1, got {rows.dtype} {list(rows.shape)}")
    want = [2, len(rows), 2 * -(-tokens // 64)]
    if seen.dtype != torch.int32 or list(seen.shape) != want:
        got = f"{seen.dtype} {list(seen.shape)}"
        raise ValueError(f"seen must be int32 {want}, from pack_keys, got {got}")


def _by_torch(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Compute the losses from bool masks [2, R, S]; on any device, also the reference."""
    heads, tokens = k.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    if q.device.type == "cpu" and k.shape[3] == v.shape[3]:
        return _by_fused(q.index_select(2, rows).to(wide), k.to(wide), v.to(wide), seen, scale)
    # few queries, many keys: only pieces of the key axis give a GPU enough independent products
    short = -tokens % _PIECE
    pieces = (tokens + short) // _PIECE
    # q: [B, Hkv, 1, G * R, D], the query heads of one key head side by side
    q = (q.index_select(2, rows).to(wide) * scale).unflatten(1, (heads, -1))
    group, q = q.shape[2], q.flatten(2, 3)[:, :, None]
    masks = torch.nn.functional.pad(torch.cat([torch.ones_like(seen[:1]), seen]), (0, short))
    # masks: [3, P, G * R, PIECE]
    masks = masks.unflatten(2, (pieces, _PIECE)).transpose(1, 2).repeat(1, 1, group, 1)
    width = 3 * q.shape[3] + k.shape[-1] + v.shape[-1]
    step = max(1, _SCRATCH // (len(q) * tokens * width * wide.itemsize))
    losses = []
    for first in range(0, heads, step):
        part = slice(first, first + step)
        keys, values = (
            torch.nn.functional.pad(t[:, part].to(wide), (0, 0, 0, short)).unflatten(
                2, (-1, _PIECE)
            )
            for t in (k, v)
        )
        logits = q[:, part] @ keys.mT
        full, *outs = (
            _softmax_product(logits.masked_fill(~m, float("-inf")), values) for m in masks
        )
        errors = (out.sub(full).square().unflatten(2, (group, -1)) for out in outs)
        losses.append(torch.stack([error.mean((-2, -1)) for error in errors]))
    return torch.cat(losses, 2).flatten(2)


def _by_fused(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Compute the losses of sampled q [B, H, R, D] by PyTorch's fused kernel, which keeps no
    logits: on a CPU writing them takes longer than the products."""
    k, v = (per_head(x, *q.shape[:2]) for x in (k, v))
    attend = torch.nn.functional.scaled_dot_product_attention
    full, *outs = (attend(q, k, v, attn_mask=m, scale=scale) for m in (None, *seen))
    outs = (o.where(m.any(-1)[:, None], 0) for o, m in zip(outs, seen, strict=True))
    return torch.stack([o.sub(full).square().mean((-2, -1)) for o in outs])


def _softmax_product(logits: Tensor, v: Tensor) -> Tensor:
    """Return softmax(logits) @ v over an axis in pieces: [B, H, P, R, n], [B, H, P, n, D]."""
    # finite, so that a row of which nothing is seen gives 0
    peak = logits.amax((2, 4), keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    p = (logits - peak).exp_()
    return (p @ v).sum(2) / p.sum((2, 4)).clamp(min=torch.finfo(logits.dtype).tiny)[..., None]
