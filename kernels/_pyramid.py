"""Triton kernels of pyramid.py: all factors in one pass over k and v, and lists from levels.

`pool_kernel` reads the 8 tokens of a group one by one, each with all its neighbours' rows, so that
every sum is taken inside a thread. No atomics, no scratch. Limits: head dims of 256.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import block_range, load_rows, store_rows
from dit_sparse.kernels._launch import dense_rows, head_offsets
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import Cut

# elements of a tile: 128 threads with two loads of 16 bytes each, for 2-byte types
_TILE = 2048


@triton.jit
def put_means(
    out_ptr, bias_ptr, total, left, at, keep, own, FACTOR: tl.constexpr, HAS_BIAS: tl.constexpr,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store sums [TILE, BLOCK_D] as means of the `left` tokens, FACTOR at most, and their ln n."""
    n = tl.minimum(tl.maximum(left, 0), FACTOR).to(tl.float32)
    some = tl.maximum(n, 1.0)
    store_rows(out_ptr, DIM, at, keep, total * (1.0 / some)[:, None], DIM, BLOCK_D)
    if HAS_BIAS:
        tl.store(bias_ptr + at, tl.where(n > 0, tl.log(some), float("-inf")), mask=own)


@triton.jit
def pool_rows(
    x_ptr, stride, out_ptr, bias_ptr, first, end, group, live, groups, own, FACTORS: tl.constexpr,
    HAS_BIAS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Pool the 8 tokens from each of `first` [TILE] on by the factors that FACTORS adds up."""
    fours = groups * (4 if FACTORS & 2 else 0)
    eights = fours + groups * (2 if FACTORS & 4 else 0)
    for i in tl.static_range(4):
        token = first + 2 * i
        # two, four, eight: [TILE, BLOCK_D] sums
        two = load_rows(x_ptr, stride, token, token < end, DIM, BLOCK_D).to(tl.float32)
        two += load_rows(x_ptr, stride, token + 1, token + 1 < end, DIM, BLOCK_D).to(tl.float32)
        if FACTORS & 2:
            put_means(
                out_ptr, bias_ptr, two, end - token, group * 4 + i, live, own, 2, HAS_BIAS, DIM,
                BLOCK_D,
            )  # fmt: skip
        if i % 2 == 0:
            four = two
        else:
            four += two
            if FACTORS & 4:
                put_means(
                    out_ptr, bias_ptr, four, end - token + 2, fours + group * 2 + i // 2, live,
                    own, 4, HAS_BIAS, DIM, BLOCK_D,
                )  # fmt: skip
            if i == 1:
                eight = four
            else:
                eight += four
    if FACTORS & 8:
        put_means(
            out_ptr, bias_ptr, eight, end - first, eights + group, live, own, 8, HAS_BIAS, DIM,
            BLOCK_D,
        )  # fmt: skip


@triton.jit
def pool_kernel(
    k_ptr, v_ptr, ck_ptr, cv_ptr, bias_ptr, offsets_ptr, stride_kb, stride_kh, stride_ks, stride_vb,
    stride_vh, stride_vs, stride_fb, stride_fh, heads, blocks, columns, tokens, bias_batch,
    bias_heads, SIZE: tl.constexpr, IS_UNIFORM: tl.constexpr, FACTORS: tl.constexpr, DIM:
    tl.constexpr, DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, TILE:
    tl.constexpr,
):  # fmt: skip
    GROUPS: tl.constexpr = (SIZE + 7) // 8
    groups = blocks * GROUPS
    tiles = tl.cdiv(groups, TILE)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = head // heads, head % heads
    # group: [TILE] of 8 tokens, counted over the blocks
    group = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    live = group < groups
    start, end = block_range(
        group // GROUPS, offsets_ptr + b * stride_fb + h * stride_fh, tokens, SIZE, IS_UNIFORM, live
    )
    first = start + group % GROUPS * 8
    bias_ptr += (b * bias_heads + h) * columns
    # heads with the same cut share their bias
    own = group < tl.where((b < bias_batch) & (h < bias_heads), groups, 0)
    if tl.program_id(1) == 0:
        pool_rows(
            k_ptr + b * stride_kb + h * stride_kh, stride_ks, ck_ptr + head * columns * DIM,
            bias_ptr, first, end, group, live, groups, own, FACTORS, True, DIM, BLOCK_D,
        )  # fmt: skip
    else:
        pool_rows(
            v_ptr + b * stride_vb + h * stride_vh, stride_vs, cv_ptr + head * columns * DIM_V,
            bias_ptr, first, end, group, live, groups, own, FACTORS, False, DIM_V, BLOCK_DV,
        )  # fmt: skip


@triton.jit
def lists_kernel(
    level_ptr, count_ptr, index_ptr, stride_lb, stride_lh, stride_lm, stride_ln, heads, rows, n,
    capacity, FACTORS: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    h, b = row // rows % heads, row // rows // heads
    level_ptr += b * stride_lb + h * stride_lh + row % rows * stride_lm
    index_ptr += row * capacity
    count = tl.zeros([], tl.int32)
    base = 0
    for e in tl.static_range(1, 4):
        if FACTORS & (1 << e):
            # a block of factor 2^e is MOST >> e runs
            for start in range(0, n, BLOCK):
                at = start + tl.arange(0, BLOCK)
                # level: [BLOCK] int8
                level = tl.load(level_ptr + at.to(tl.int64) * stride_ln, mask=at < n, other=0)
                seen = (level == e + 1).to(tl.int32)
                place = count + (tl.cumsum(seen, 0) - seen) * (MOST >> e)
                for i in tl.static_range(MOST >> e):
                    keep = (seen != 0) & (place + i < capacity)
                    tl.store(index_ptr + place + i, base + at * (MOST >> e) + i, mask=keep)
                count += tl.sum(seen, 0) * (MOST >> e)
            base += n * (MOST >> e)
    count = tl.minimum(count, capacity)
    tl.store(count_ptr + row, count)
    for start in range(0, capacity, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(index_ptr + at, at * 0, mask=(at >= count) & (at < capacity))


def pool_groups(
    k: Tensor, v: Tensor, cut: Cut, factors: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch pool_kernel; see pyramid.pool_groups."""
    k, v, offsets = dense_rows(k), dense_rows(v), head_offsets(cut, k)
    batch, heads, tokens, dim = k.shape
    blocks, groups = cut.count(tokens), cut.count(tokens) * -(-cut.size // 8)
    columns = groups * sum(8 // f for f in factors)
    shared = (1, 1) if cut.offsets is None else tuple(cut.offsets.shape[:2])
    ck, cv = (torch.empty(batch, heads, columns, x.shape[3], device=k.device, dtype=k.dtype)
              for x in (k, v))  # fmt: skip
    bias = torch.empty(*shared, columns, device=k.device, dtype=torch.float32)
    block_d, block_dv = power_of_2(dim), power_of_2(v.shape[3])
    tile = min(power_of_2(groups), _TILE // max(block_d, block_dv))
    pool_kernel[(batch * heads * triton.cdiv(groups, tile), 2)](
        k, v, ck, cv, bias, offsets, *k.stride()[:3], *v.stride()[:3], *offsets.stride()[:2], heads,
        blocks, columns, tokens, *shared, SIZE=cut.size, IS_UNIFORM=cut.offsets is None,
        FACTORS=sum(factors), DIM=dim, DIM_V=v.shape[3], BLOCK_D=block_d, BLOCK_DV=block_dv,
        TILE=tile, num_warps=4,
    )  # fmt: skip
    return ck, cv, bias


def level_lists(level: Tensor, factors: tuple[int, ...], capacity: int) -> tuple[Tensor, Tensor]:
    """Launch lists_kernel; see pyramid.level_lists."""
    batch, heads, rows, n = level.shape
    count = torch.empty(batch, heads, rows, device=level.device, dtype=torch.int32)
    index = torch.empty(batch, heads, rows, capacity, device=level.device, dtype=torch.int32)
    block = min(1024, power_of_2(n))
    lists_kernel[(count.numel(),)](
        level, count, index, *level.stride(), heads, rows, n, capacity, FACTORS=sum(factors),
        MOST=max(factors), BLOCK=block, num_warps=max(1, block // 256),
    )  # fmt: skip
    return count, index
