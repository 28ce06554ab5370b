"""Triton kernels of the one-pass tools: pooling and permutation, block moments, list packing.

One program per (block, head), (chunk of blocks, head) or mask row; float32 accumulation. Launched
by pool.py, permute.py and lists.py, which state formulas, shapes and users. Limits: head dims up
to 256 (moments: 128).
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import block_range, dot, load_rows
from dit_sparse.kernels._launch import dense_rows, head_offsets, own_block, precision
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import Columns, Cut, per_head


@triton.jit
def token_kernel(
    x_ptr, order_ptr, out_ptr, mean_ptr, offsets_ptr, stride_xb, stride_xh, stride_xs, stride_ib,
    stride_ih, stride_ob, stride_oh, stride_os, stride_fb, stride_fh, heads, blocks, tokens, DIM:
    tl.constexpr, BLOCK_D: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, IS_UNIFORM:
    tl.constexpr, HAS_ORDER: tl.constexpr, IS_INVERSE: tl.constexpr, WRITE_TOKENS: tl.constexpr,
    WRITE_MEAN: tl.constexpr, IS_SUM: tl.constexpr,
):  # fmt: skip
    b, h, block, start, end = own_block(
        offsets_ptr, stride_fb, stride_fh, heads, blocks, tokens, SIZE, IS_UNIFORM
    )
    x_ptr += b * stride_xb + h * stride_xh
    out_ptr += b * stride_ob + h * stride_oh
    dims = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in range(start, end, TILE):
        rows = first + tl.arange(0, TILE)
        keep = rows < end
        place = rows.to(tl.int64)
        if HAS_ORDER:
            place = tl.load(
                order_ptr + b * stride_ib + h * stride_ih + rows, mask=keep, other=0
            ).to(tl.int64)
        source = rows.to(tl.int64) if IS_INVERSE else place
        target = place if IS_INVERSE else rows.to(tl.int64)
        # x: [TILE, BLOCK_D]
        x = load_rows(x_ptr, stride_xs, source, keep, DIM, BLOCK_D)
        if WRITE_TOKENS:
            at = out_ptr + target[:, None] * stride_os + dims[None, :]
            tl.store(at, x, mask=keep[:, None] & (dims < DIM)[None, :])
        if WRITE_MEAN:
            total += tl.sum(x.to(tl.float32), 0)
    if WRITE_MEAN:
        if not IS_SUM:
            total = total / tl.maximum(end - start, 1).to(tl.float32)
        at = mean_ptr + block * DIM + dims
        tl.store(at, total.to(mean_ptr.dtype.element_ty), mask=dims < DIM)


@triton.jit
def moments_kernel(
    k_ptr, v_ptr, kbar_ptr, vbar_ptr, part_ptr, norm_ptr, offsets_ptr, stride_kb, stride_kh,
    stride_ks, stride_vb, stride_vh, stride_vs, stride_fb, stride_fh, heads, blocks, tokens,
    chunks, chunk, DIM: tl.constexpr, DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V:
    tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, IS_UNIFORM: tl.constexpr, PRECISION:
    tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) % chunks
    bh = tl.program_id(0) // chunks
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    k_ptr += b * stride_kb + h * stride_kh
    v_ptr += b * stride_vb + h * stride_vh
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_V)
    summed = tl.zeros([BLOCK_D, BLOCK_V], tl.float32)
    for block in range(part * chunk, tl.minimum((part + 1) * chunk, blocks)):
        start, end = block_range(
            block, offsets_ptr + b * stride_fb + h * stride_fh, tokens, SIZE, IS_UNIFORM, True
        )
        if SIZE <= TILE:
            # no inner loop: the tiles of the next blocks load while this one computes
            rows = start + tl.arange(0, TILE)
            # k: [TILE, BLOCK_D], v: [TILE, BLOCK_V]
            k = load_rows(k_ptr, stride_ks, rows, rows < end, DIM, BLOCK_D)
            v = load_rows(v_ptr, stride_vs, rows, rows < end, DIM_V, BLOCK_V)
            outer = dot(tl.trans(k), v, tl.zeros([BLOCK_D, BLOCK_V], tl.float32), PRECISION)
            k_sum = tl.sum(k.to(tl.float32), 0)
            v_sum = tl.sum(v.to(tl.float32), 0)
        else:
            outer = tl.zeros([BLOCK_D, BLOCK_V], tl.float32)
            k_sum = tl.zeros([BLOCK_D], tl.float32)
            v_sum = tl.zeros([BLOCK_V], tl.float32)
            for first in range(start, end, TILE):
                rows = first + tl.arange(0, TILE)
                k = load_rows(k_ptr, stride_ks, rows, rows < end, DIM, BLOCK_D)
                v = load_rows(v_ptr, stride_vs, rows, rows < end, DIM_V, BLOCK_V)
                outer = dot(tl.trans(k), v, outer, PRECISION)
                k_sum += tl.sum(k.to(tl.float32), 0)
                v_sum += tl.sum(v.to(tl.float32), 0)
        count = tl.maximum(end - start, 1).to(tl.float32)
        # sum (k - kbar)^T v = k^T v - n kbar^T vbar, in float32: no rounding of centred keys
        outer -= k_sum[:, None] * (v_sum / count)[None, :]
        summed += outer
        at = bh.to(tl.int64) * blocks + block
        tl.store(kbar_ptr + at * DIM + d, k_sum / count, mask=d < DIM)
        tl.store(vbar_ptr + at * DIM_V + e, v_sum / count, mask=e < DIM_V)
        tl.store(norm_ptr + at, tl.sqrt(tl.sum(tl.sum(outer * outer, 1), 0)))
    at = (
        part_ptr + (bh.to(tl.int64) * chunks + part) * DIM * DIM_V + d[:, None] * DIM_V + e[None, :]
    )
    tl.store(at, summed, mask=(d < DIM)[:, None] & (e < DIM_V)[None, :])


@triton.jit
def pack_kernel(mask_ptr, count_ptr, index_ptr, n, capacity, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    count = tl.zeros([], tl.int32)
    for base in range(0, n, BLOCK):
        at = base + tl.arange(0, BLOCK)
        # mask: [BLOCK] int8
        kept = (tl.load(mask_ptr + row * n + at, mask=at < n, other=0) != 0).to(tl.int32)
        place = count + tl.cumsum(kept, 0) - 1
        tl.store(index_ptr + row * capacity + place, at, mask=(kept != 0) & (place < capacity))
        count += tl.sum(kept, 0)
    tl.store(count_ptr + row, tl.minimum(count, capacity))


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


@triton.jit
def top_kernel(score_ptr, level_ptr, n, k, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    # score: [BLOCK] float32 -> unsigned integers of the same order; 0 is below every score
    bits = tl.load(score_ptr + row * n + at, mask=at < n, other=0.0).to(tl.uint32, bitcast=True)
    key = tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    key = tl.where(at < n, key, tl.zeros([BLOCK], tl.uint32))
    # the k-th largest key, bit by bit from the top
    edge = tl.zeros([], tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(32):
        higher = edge | bit
        edge = tl.where(tl.sum((key >= higher).to(tl.int32), 0) >= k, higher, edge)
        bit = bit >> 1
    above = (key > edge).to(tl.int32)
    tie = ((key == edge) & (at < n)).to(tl.int32)
    # equal scores: the first ones
    first = tl.cumsum(tie, 0) <= k - tl.sum(above, 0)
    keep = above | (tie & first.to(tl.int32))
    tl.store(level_ptr + row * n + at, keep.to(tl.int8), mask=at < n)


def token_pass(
    x: Tensor,
    cut: Cut,
    order: Tensor | None,
    inverse: bool,
    out: Tensor | None,
    mean: Tensor | None,
    is_sum: bool,
) -> None:
    """Fill `out` [B, H, S, D] with permuted tokens and `mean` [B, H, N, D] with block means in one
    pass."""
    x = dense_rows(x)
    batch, heads, tokens, dim = x.shape
    blocks = cut.count(tokens)
    order_ = x if order is None else order.contiguous().expand(batch, heads, tokens)
    out_, mean_ = x if out is None else out, x if mean is None else mean
    offsets = head_offsets(cut, x)
    token_kernel[(batch * heads * blocks,)](
        x, order_, out_, mean_, offsets, *x.stride()[:3], *order_.stride()[:2], *out_.stride()[:3],
        *offsets.stride()[:2], heads, blocks, tokens, DIM=dim, BLOCK_D=power_of_2(dim),
        SIZE=cut.size, TILE=min(64, power_of_2(cut.size)), IS_UNIFORM=cut.offsets is None,
        HAS_ORDER=order is not None, IS_INVERSE=inverse, WRITE_TOKENS=out is not None,
        WRITE_MEAN=mean is not None, IS_SUM=is_sum, num_warps=4,
    )  # fmt: skip


def block_moments(k: Tensor, v: Tensor, cut: Cut) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch moments_kernel; see pool.block_moments."""
    k, v = dense_rows(k), dense_rows(v)
    batch, heads, tokens, dim = k.shape
    dim_v, blocks = v.shape[3], cut.count(tokens)
    # about one program per multiprocessor of a large GPU (registers allow no second one); each
    # writes one partial matrix
    chunk = max(1, -(-blocks * batch * heads // 132))
    chunks = -(-blocks // chunk)
    f32 = {"device": k.device, "dtype": torch.float32}
    kbar, vbar = (torch.empty(batch, heads, blocks, n, **f32) for n in (dim, dim_v))
    part = torch.empty(batch, heads, chunks, dim, dim_v, **f32)
    norm = torch.empty(batch, heads, blocks, **f32)
    offsets = head_offsets(cut, k)
    moments_kernel[(batch * heads * chunks,)](
        k, v, kbar, vbar, part, norm, offsets, *k.stride()[:3], *v.stride()[:3],
        *offsets.stride()[:2], heads, blocks, tokens, chunks, chunk, DIM=dim, DIM_V=dim_v,
        BLOCK_D=power_of_2(dim), BLOCK_V=power_of_2(dim_v), SIZE=cut.size, TILE=min(64 if
        k.element_size() == 2 else 32, power_of_2(cut.size)), IS_UNIFORM=cut.offsets is None,
        PRECISION=precision(), num_warps=8,
    )  # fmt: skip
    return kbar, vbar, part.sum(2), norm


def pack_lists(block_mask: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Launch pack_kernel; see lists.pack_lists."""
    mask, n = block_mask.contiguous().view(torch.int8), block_mask.shape[-1]
    count = torch.empty(mask.shape[:-1], device=mask.device, dtype=torch.int32)
    index = torch.zeros(*mask.shape[:-1], capacity, device=mask.device, dtype=torch.int32)
    pack_kernel[(count.numel(),)](
        mask, count, index, n, capacity, BLOCK=min(1024, power_of_2(n)), num_warps=4
    )
    return count, index


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


def top_blocks(score: Tensor, k: int) -> Tensor:
    """Launch top_kernel; see lists.top_blocks."""
    score = score.contiguous()
    level = torch.empty(score.shape, device=score.device, dtype=torch.int8)
    n = score.shape[-1]
    block = power_of_2(n)
    top_kernel[(score.numel() // n,)](
        score, level, n, k, BLOCK=block, num_warps=min(16, max(1, block // 512))
    )
    return level
