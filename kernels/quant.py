"""Attention in fp8 (e4m3): q, k and v as 8-bit numbers with scales, and what the lse needs.

    k - mean = k_scale * k8        mean [D]: of a sample of the head's tokens
    q        = q_scale * (high + low)
    v        = v_scale * v8
    s q k    = s q_scale k_scale (high + low) k8 + shift,  shift = s q mean

A vector subtracted from all keys moves all logits of a query alike, so that the softmax does not
change and lse by `shift`. Scales: one a query, one a group of keys for k and one for v. A query is
two numbers for accuracy: rounding each of q, k, weights and v costs .026 of its magnitude, all four
of them together .053 of the output of random inputs, three .046.
Users: hopper_fp8.py; the torch and reference forms of attention through `rounding`, so that what
the option costs in accuracy can be seen anywhere.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.kernels.contract import Cut

FP8 = torch.float8_e4m3fn
TILE = 128  # keys that share a scale, where blocks allow it
# of these tokens the mean is taken, at least: any vector is right, and near the mean is enough
SAMPLE = 1024
_TOP, _LEAST = 448.0, 1.0e-9


class Quantised(NamedTuple):
    """q [B, H, Sq, 2 D] (high, low), k [B, Hkv, Skv, D], v [B, Hkv, D, whole tiles of keys]: fp8.

    q_scale: [B, H, Sq]; kv_scale: [B, Hkv, G, 32] (k_scale, v_scale, 1 / v_scale, unused: a copy
    to shared memory is 128 bytes); shift: [B, H, Sq] in log2 units; all float32.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_scale: Tensor
    kv_scale: Tensor
    shift: Tensor


def has_tiles(cut: Cut) -> bool:
    """Tell whether blocks of keys cut so are whole tiles, which then have scales of their own."""
    return cut.offsets is None and cut.size % TILE == 0


def order_of(places: Tensor) -> Tensor:
    """Return which key's values stand at each place of v8: a permutation of every 16.

    A thread of a warpgroup product holds the weights of keys 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 of
    16 and gives, as an 8-bit operand, places 4 c to 4 c + 3.
    """
    return places // 16 * 16 + places // 2 % 2 * 8 + places // 4 % 4 * 2 + places % 2


def key_mean(k: Tensor) -> Tensor:
    """Return the mean [B, Hkv, 1, D] float32 over a sample of the tokens of k [B, Hkv, S, D]."""
    step = max(1, k.shape[2] // SAMPLE)
    return k[:, :, ::step].mean(2, keepdim=True, dtype=torch.promote_types(k.dtype, torch.float32))


def quantise(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, by_tile: bool = True, permuted: bool = True,
    impl: str = "triton",
) -> Quantised:  # fmt: skip
    """Return q, k and v in fp8; D = Dv of 64 or 128 in triton.

    scale: of the logits. by_tile: keys have their scales by tiles of TILE tokens, else by head.
    permuted: the values stand in the order `order_of`. impl: triton or torch.
    """
    if impl == "torch":
        return _eager(q, k, v, scale, by_tile, permuted)
    from dit_sparse.kernels._launch import dense_rows
    from dit_sparse.kernels._quant import keys_kernel, queries_kernel

    q, k, v = (dense_rows(x) for x in (q, k, v))
    batch, heads, s_q, dim = q.shape
    kv_heads, s_kv = k.shape[1:3]
    tiles, mean = -(-s_kv // TILE), key_mean(k).contiguous()
    floats, numbers = mean.new_empty, torch.empty(0, dtype=FP8, device=q.device).new_empty
    made = Quantised(
        numbers(batch, heads, s_q, 2 * dim),
        numbers(batch, kv_heads, s_kv, dim),
        numbers(batch, kv_heads, dim, tiles * TILE),
        floats(batch, heads, s_q),
        floats(batch, kv_heads, tiles, 32),
        floats(batch, heads, s_q),
    )
    sizes = (*k.stride()[:3], *v.stride()[:3], kv_heads, s_kv, tiles, tiles * TILE)
    flags = {"DIM": dim, "TILE": TILE, "IS_PERMUTED": permuted, "num_warps": 8}
    grid = (batch * kv_heads * tiles,)
    if not by_tile:
        keys_kernel[grid](
            k, v, mean, made.k, made.v, made.kv_scale, *sizes, **flags, HAS_SCALE=False, WRITE=False
        )
        made = made._replace(kv_scale=made.kv_scale.amax(2, keepdim=True))
        made.kv_scale[..., 2] = 1 / made.kv_scale[..., 1]
    keys_kernel[grid](
        k, v, mean, made.k, made.v, made.kv_scale, *sizes, **flags, HAS_SCALE=not by_tile,
        WRITE=True,
    )  # fmt: skip
    queries_kernel[(batch * heads * -(-s_q // 64),)](
        q, mean, made.q, made.q_scale, made.shift, *q.stride()[:3], heads, heads // kv_heads, s_q,
        -(-s_q // 64), scale * math.log2(math.e), DIM=dim, TILE=64, num_warps=4,
    )  # fmt: skip
    return made


def _eager(
    q: Tensor, k: Tensor, v: Tensor, scale: float, by_tile: bool, permuted: bool
) -> Quantised:
    """Compute `quantise` in torch, its scales and shift in q's dtype or float32."""
    mean, tokens = key_mean(k), k.shape[2]
    tiles = -(-tokens // TILE)
    # tiles: [B, Hkv, G, tokens of a scale, D]
    cut = (tiles, TILE) if by_tile else (1, tiles * TILE)
    spare = (0, 0, 0, tiles * TILE - tokens)
    kk, vv = (F.pad(x, spare).unflatten(2, cut) for x in (k - mean, v.to(mean.dtype)))
    k_scale, v_scale = (_scale(x, (3, 4)) for x in (kk, vv))
    k8, v8 = ((x * (1 / s)).to(FP8).flatten(2, 3) for x, s in ((kk, k_scale), (vv, v_scale)))
    if permuted:
        v8 = v8.view(torch.uint8)[:, :, order_of(torch.arange(tiles * TILE, device=v.device))]
    scales = torch.stack((k_scale, v_scale, 1 / v_scale), -1).flatten(3)
    q_scale = _scale(q.to(mean.dtype), (3,))
    x = q * (1 / q_scale)
    high = x.to(FP8)
    terms = high.view(torch.uint8), (x - high.to(x.dtype)).to(FP8).view(torch.uint8)
    shared = mean.repeat_interleave(q.shape[1] // k.shape[1], 1)
    return Quantised(
        torch.cat(terms, -1).view(FP8),
        k8[:, :, :tokens].contiguous(),
        v8.view(torch.uint8).mT.contiguous().view(FP8),
        q_scale[..., 0],
        F.pad(scales, (0, 29)),
        (q.to(mean.dtype) * shared).sum(-1) * (scale * math.log2(math.e)),
    )


def _scale(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x.abs().amax(axes, keepdim=True).clamp(min=_LEAST) / _TOP


def restore(x: Quantised, order: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k without its mean, and v as the 8-bit numbers stand for them, each [B, H or Hkv,
    S, D]; order: `order_of` all places where v is permuted."""
    kind, tokens = x.q_scale.dtype, x.k.shape[2]
    q = x.q.to(kind).unflatten(-1, (2, -1)).sum(-2) * x.q_scale[..., None]
    by_key = x.kv_scale.repeat_interleave(x.v.shape[3] // x.kv_scale.shape[2], 2)
    v = x.v.mT.to(kind)
    if order is not None:
        v = v[:, :, order.argsort()]
    k_scale, v_scale = (by_key[:, :, :tokens, n, None] for n in (0, 1))
    return q, x.k.to(kind) * k_scale, v[:, :, :tokens] * v_scale


def rounding(attend: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return attention.block_sparse_attention as `attend` computes it, of q, k and v as fp8 holds
    them; the weights are not rounded."""

    def rounded(q, k, v, *lists, scale, kv_blocks, **options):
        x = quantise(q, k, v, scale, by_tile=has_tiles(kv_blocks), permuted=False, impl="torch")
        options = {**options, "scale": scale, "kv_blocks": kv_blocks}
        out, lse = attend(*restore(x), *lists, **options)
        return out.to(q.dtype), lse + (x.shift * math.log(2)).to(lse.dtype)

    return rounded
