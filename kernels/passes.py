"""Triton kernels of two one-pass tools: block covariances, and addends of extra columns.

One program per (chunk of blocks, head) or row of addends; float32 accumulation. Launched by pool.py
and the attention kernels, which state formulas, shapes and users. Limits: head dims up to 128.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import block_range, dot, load_rows
from dit_sparse.kernels._launch import dense_rows, head_offsets, precision
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import Columns, Cut, per_head


@triton.jit
def covariance_kernel(
    k_ptr, v_ptr, k_mean_ptr, v_mean_ptr, part_ptr, norm_ptr, offsets_ptr, stride_kb, stride_kh,
    stride_ks, stride_vb, stride_vh, stride_vs, stride_mb, stride_mh, stride_mn, stride_nb,
    stride_nh, stride_nn, stride_fb, stride_fh, heads, blocks, tokens, chunks, chunk, DIM:
    tl.constexpr, DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, SIZE:
    tl.constexpr, TILE: tl.constexpr, IS_UNIFORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) % chunks
    bh = tl.program_id(0) // chunks
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    k_ptr += b * stride_kb + h * stride_kh
    v_ptr += b * stride_vb + h * stride_vh
    k_mean_ptr += b * stride_mb + h * stride_mh
    v_mean_ptr += b * stride_nb + h * stride_nh
    offsets_ptr += b * stride_fb + h * stride_fh
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_V)
    summed = tl.zeros([BLOCK_D, BLOCK_V], tl.float32)
    for block in range(part * chunk, tl.minimum((part + 1) * chunk, blocks)):
        start, end = block_range(block, offsets_ptr, tokens, SIZE, IS_UNIFORM, True)
        k_mean = tl.load(k_mean_ptr + block * stride_mn + d, mask=d < DIM, other=0.0)
        v_mean = tl.load(v_mean_ptr + block * stride_nn + e, mask=e < DIM_V, other=0.0)
        outer = tl.zeros([BLOCK_D, BLOCK_V], tl.float32)
        if SIZE <= TILE:
            # no inner loop: the tiles of the next blocks load while this one computes
            rows = start + tl.arange(0, TILE)
            # k: [TILE, BLOCK_D], v: [TILE, BLOCK_V]
            k = load_rows(k_ptr, stride_ks, rows, rows < end, DIM, BLOCK_D)
            v = load_rows(v_ptr, stride_vs, rows, rows < end, DIM_V, BLOCK_V)
            outer = dot(tl.trans(k), v, outer, PRECISION)
        else:
            for first in range(start, end, TILE):
                rows = first + tl.arange(0, TILE)
                k = load_rows(k_ptr, stride_ks, rows, rows < end, DIM, BLOCK_D)
                v = load_rows(v_ptr, stride_vs, rows, rows < end, DIM_V, BLOCK_V)
                outer = dot(tl.trans(k), v, outer, PRECISION)
        # sum (k - kbar)^T v = k^T v - n kbar^T vbar, in float32: no rounding of centred keys
        outer -= (k_mean * (end - start).to(tl.float32))[:, None] * v_mean[None, :]
        summed += outer
        norm = tl.sqrt(tl.sum(tl.sum(outer * outer, 1), 0))
        tl.store(norm_ptr + bh.to(tl.int64) * blocks + block, norm)
    part_ptr += (bh.to(tl.int64) * chunks + part) * DIM * DIM_V
    at = d[:, None] * DIM_V + e[None, :]
    tl.store(part_ptr + at, summed, mask=(d < DIM)[:, None] & (e < DIM_V)[None, :])


@triton.jit
def terms_kernel(
    bias_ptr, mask_ptr, out_ptr, stride_bb, stride_bh, stride_mb, stride_mh, stride_mm, heads,
    rows, n, padded, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) % rows
    bh = tl.program_id(0) // rows
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    bias_ptr += b * stride_bb + h * stride_bh
    mask_ptr += b * stride_mb + h * stride_mh + row.to(tl.int64) * stride_mm
    out_ptr += tl.program_id(0).to(tl.int64) * padded
    for base in range(0, padded, BLOCK):
        at = base + tl.arange(0, BLOCK)
        seen = at < n
        add = tl.zeros([BLOCK], tl.float32)
        if HAS_BIAS:
            add = tl.load(bias_ptr + at, mask=seen, other=0.0) * 1.4426950408889634
        if HAS_MASK:
            seen = tl.load(mask_ptr + at, mask=seen, other=0) != 0
        tl.store(out_ptr + at, tl.where(seen, add, float("-inf")), mask=at < padded)


def block_covariances(
    k: Tensor, v: Tensor, k_mean: Tensor, v_mean: Tensor, cut: Cut
) -> tuple[Tensor, Tensor]:
    """Launch covariance_kernel; see pool.block_covariances."""
    k, v, k_mean, v_mean = (dense_rows(x) for x in (k, v, k_mean, v_mean))
    batch, heads, tokens, dim = k.shape
    dim_v, blocks = v.shape[3], cut.count(tokens)
    chunk = _chunk(blocks, batch * heads)
    chunks = -(-blocks // chunk)
    f32 = {"device": k.device, "dtype": torch.float32}
    part = torch.empty(batch, heads, chunks, dim, dim_v, **f32)
    norm = torch.empty(batch, heads, blocks, **f32)
    offsets = head_offsets(cut, k)
    covariance_kernel[(batch * heads * chunks,)](
        k, v, k_mean, v_mean, part, norm, offsets, *k.stride()[:3], *v.stride()[:3],
        *k_mean.stride()[:3], *v_mean.stride()[:3], *offsets.stride()[:2], heads, blocks, tokens,
        chunks, chunk, DIM=dim, DIM_V=dim_v, BLOCK_D=power_of_2(dim), BLOCK_V=power_of_2(dim_v),
        SIZE=cut.size, TILE=min(64 if k.element_size() == 2 else 32, power_of_2(cut.size)),
        IS_UNIFORM=cut.offsets is None, PRECISION=precision(), num_warps=8,
    )  # fmt: skip
    return part.sum(2), norm


@functools.lru_cache(maxsize=64)
def _chunk(blocks: int, rows: int) -> int:
    """Return how many blocks one program takes, of `rows` rows of them.

    A large GPU runs 132 programs at a time (registers allow no second one on a multiprocessor): as
    few of these rounds as need be, of few blocks. A program ends by writing a matrix, which costs
    as much as about two blocks.
    """

    def cost(chunks: int) -> int:
        return -(-rows * chunks // 132) * (-(-blocks // chunks) + 2)

    return -(-blocks // min(range(1, max(1, -(-blocks // 16)) + 1), key=cost))


def column_terms(columns: Columns, heads: int, rows: int, block: int) -> Tensor:
    """Return log2 e * bias, -inf where hidden, as float32 [B, H, M, C2 padded to `block`].

    One addend for the attention kernel's inner loop; axes that every input shares have stride 0.
    """
    bias, mask, k = columns.bias, columns.mask, columns.k
    n, padded = k.shape[2], -(-k.shape[2] // block) * block
    given = [x for x in (bias, mask) if x is not None]
    batch = max([x.shape[0] for x in given], default=1)
    own = heads if any(x.shape[1] > 1 for x in given) else 1
    own_rows = 1 if mask is None else rows
    out = torch.empty(batch, own, own_rows, padded, device=k.device, dtype=torch.float32)
    bias_ = out[:, :, 0] if bias is None else dense_rows(per_head(bias, batch, own))
    mask_ = out if mask is None else dense_rows(per_head(mask, batch, own)).view(torch.int8)
    terms_kernel[(batch * own * own_rows,)](
        bias_, mask_, out, *bias_.stride()[:2], *mask_.stride()[:3], own, own_rows, n, padded,
        HAS_BIAS=bias is not None, HAS_MASK=mask is not None, BLOCK=min(1024, power_of_2(padded)),
        num_warps=4,
    )  # fmt: skip
    return out.expand(k.shape[0], heads, rows, padded)
