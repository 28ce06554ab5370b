"""Triton kernels that write queries, keys and values as fp8 numbers with their scales.

Launched by quant.py, which states formulas and shapes.
"""

import triton
import triton.language as tl

from dit_sparse.kernels._jit import INTERPRETED, load_rows

# the largest number, and the least magnitude that a scale is made for
_TOP = tl.constexpr(448.0)
_LEAST = tl.constexpr(1.0e-9)


@triton.jit
def nearest(x):
    """Return float32 x, below 464, rounded to the nearest number of e4m3, ties to even."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    # numbers beside 1.5 * 2^14 are multiples of the least one, 2^-9
    small = (x + 24576.0) - 24576.0
    return tl.where(tl.abs(x) < 0.015625, small, bits.to(tl.float32, bitcast=True))


@triton.jit
def as_fp8(x):
    """Return x in e4m3, rounded to nearest even."""
    if INTERPRETED:
        # the interpreter drops the carry of a rounding and what is below the least normal number
        x = nearest(x)
    return x.to(tl.float8e4nv)


@triton.jit
def keys_kernel(
    k_ptr, v_ptr, mean_ptr, k_out_ptr, v_out_ptr, scale_ptr, stride_kb, stride_kh, stride_ks,
    stride_vb, stride_vh, stride_vs, heads, tokens, tiles, stored, DIM: tl.constexpr, TILE:
    tl.constexpr, IS_PERMUTED: tl.constexpr, HAS_SCALE: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values: their scales, unless given (HAS_SCALE), and their numbers."""
    tile = tl.program_id(0) % tiles
    bh = tl.program_id(0) // tiles
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    at = tl.arange(0, TILE)
    dims = tl.arange(0, DIM)
    rows = tile * TILE + at
    # k, v: [TILE, DIM]
    k = load_rows(k_ptr + b * stride_kb + h * stride_kh, stride_ks, rows, rows < tokens, DIM, DIM)
    mean = tl.load(mean_ptr + bh * DIM + dims)
    k = tl.where((rows < tokens)[:, None], k.to(tl.float32) - mean[None, :], 0.0)
    key = rows
    if IS_PERMUTED:
        # the key whose weight the tensor cores take at this place: order_of in quant.py
        key = tile * TILE + at // 16 * 16 + at // 2 % 2 * 8 + at // 4 % 4 * 2 + at % 2
    v = load_rows(v_ptr + b * stride_vb + h * stride_vh, stride_vs, key, key < tokens, DIM, DIM)
    v = v.to(tl.float32)
    if HAS_SCALE:
        scale_ptr += bh.to(tl.int64) * 32
        k_scale = tl.load(scale_ptr)
        v_scale = tl.load(scale_ptr + 1)
    else:
        scale_ptr += (bh.to(tl.int64) * tiles + tile) * 32
        k_scale = tl.maximum(tl.max(tl.max(tl.abs(k), 1), 0), _LEAST) / _TOP
        v_scale = tl.maximum(tl.max(tl.max(tl.abs(v), 1), 0), _LEAST) / _TOP
        place = tl.arange(0, 4)
        v_scales = tl.where(place == 1, v_scale, 1.0 / v_scale)
        tl.store(scale_ptr + place, tl.where(place == 0, k_scale, v_scales))
    if WRITE:
        k = as_fp8(k * (1.0 / k_scale))
        v = as_fp8(v * (1.0 / v_scale))
        k_at = k_out_ptr + (bh.to(tl.int64) * tokens + rows)[:, None] * DIM + dims[None, :]
        tl.store(k_at, k, mask=(rows < tokens)[:, None])
        v_out_ptr += bh.to(tl.int64) * DIM * stored + tile * TILE
        tl.store(v_out_ptr + dims.to(tl.int64)[:, None] * stored + at[None, :], tl.trans(v))


@triton.jit
def queries_kernel(
    q_ptr, mean_ptr, out_ptr, scale_ptr, shift_ptr, stride_qb, stride_qh, stride_qs, heads, group,
    tokens, tiles, factor, DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of queries: each a scale times the sum of two fp8 numbers; and its shift."""
    tile = tl.program_id(0) % tiles
    bh = tl.program_id(0) // tiles
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    rows = tile * TILE + tl.arange(0, TILE)
    keep = rows < tokens
    dims = tl.arange(0, DIM)
    # q: [TILE, DIM]
    q = load_rows(q_ptr + b * stride_qb + h * stride_qh, stride_qs, rows, keep, DIM, DIM)
    q = q.to(tl.float32)
    mean = tl.load(mean_ptr + (b * (heads // group) + h // group) * DIM + dims)
    scale = tl.maximum(tl.max(tl.abs(q), 1), _LEAST) / _TOP
    tl.store(scale_ptr + bh.to(tl.int64) * tokens + rows, scale, mask=keep)
    shift = tl.sum(q * mean[None, :], 1) * factor
    tl.store(shift_ptr + bh.to(tl.int64) * tokens + rows, shift, mask=keep)
    q = q * (1.0 / scale)[:, None]
    # not by way of fp8 and back, which gave wrong signs on an H200 (Triton 3.6)
    high = nearest(q)
    low = as_fp8(q - high)
    at = out_ptr + (bh.to(tl.int64) * tokens + rows)[:, None] * (2 * DIM) + dims[None, :]
    tl.store(at, high.to(tl.float8e4nv), mask=keep[:, None])
    tl.store(at + DIM, low, mask=keep[:, None])
