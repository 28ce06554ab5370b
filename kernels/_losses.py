"""Triton kernels of losses.masked_losses: three softmaxes in one read of the keys, then a merge.

The first kernel has a program per (head, 64 queries, tile of Dv, chunk of keys), so that few
queries keep a whole GPU busy. It folds each tile of keys and values into three online softmaxes,
of all keys and of those that either mask shows, and writes their parts; the second merges the
parts of one query. No atomics: one input has one result. Log2 units inside.
Limits: head dims up to 256, of float32 128 (shared memory); no float64.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import load_rows, scores, softmax_step
from dit_sparse.kernels._launch import dense_rows, precision
from dit_sparse.kernels._tune import power_of_2

# queries of a program: what one step of a Hopper GPU's tensor cores takes
ROWS = tl.constexpr(64)
# programs at a time: two on each multiprocessor of a large GPU (one H200, 12 heads, 32,760 keys:
# 132, 264, 396, 528 of them .197, .155, .164, .164 ms)
PROGRAMS = 264
# chunks of one head at most: the second kernel holds all parts of a query at once
CHUNKS = 64
# a chunk of fewer tiles would cost more to merge than to read
TILES = 4


@triton.jit
def seen_logits(s, words_ptr, live, BLOCK_N: tl.constexpr):
    """Hide logits s [ROWS, BLOCK_N] by bits: words_ptr [ROWS] points to each row's 32 first keys,
    the next 32 stand beside them."""
    key = tl.arange(0, BLOCK_N)
    words = tl.load(words_ptr, mask=live, other=0)[:, None]
    if BLOCK_N > 32:
        words = tl.where(
            (key < 32)[None, :], words, tl.load(words_ptr + 1, mask=live, other=0)[:, None]
        )
    bit = tl.full([BLOCK_N], 1, tl.int32) << key % 32
    return tl.where(words & bit[None, :] != 0, s, float("-inf"))


@triton.jit
def store_part(acc_ptr, stat_ptr, part, acc, total, peak, dims, DIM_V: tl.constexpr):
    """Write the softmax of one chunk: acc [ROWS, BLOCK_V], total and peak [ROWS]."""
    line = part * ROWS + tl.arange(0, ROWS)
    tl.store(acc_ptr + line[:, None] * DIM_V + dims[None, :], acc, mask=(dims < DIM_V)[None, :])
    # the programs of other tiles of Dv write the same numbers
    tl.store(stat_ptr + line * 2, total)
    tl.store(stat_ptr + line * 2 + 1, peak)


@triton.jit
def chunk_kernel(
    q_ptr, k_ptr, v_ptr, rows_ptr, seen_ptr, acc_ptr, stat_ptr, stride_qb, stride_qh, stride_qs,
    stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs, stride_em, stride_er, heads,
    group, count, tokens, chunks, chunk, qk_scale, DIM: tl.constexpr, DIM_V: tl.constexpr, BLOCK_D:
    tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # neighbours in the launch read the same keys
    COLS: tl.constexpr = (DIM_V + BLOCK_V - 1) // BLOCK_V
    dims = tl.program_id(0) % COLS * BLOCK_V + tl.arange(0, BLOCK_V)
    place = tl.program_id(0) // COLS
    part = place % chunks
    tiles = tl.cdiv(count, ROWS)
    tile = (place // chunks).to(tl.int64)
    b, h = tile // tiles // heads, tile // tiles % heads
    row = (tile % tiles) * ROWS + tl.arange(0, ROWS)
    live = row < count
    # q: [ROWS, BLOCK_D]
    token = tl.load(rows_ptr + row, mask=live, other=0)
    q = load_rows(q_ptr + b * stride_qb + h * stride_qh, stride_qs, token, live, DIM, BLOCK_D)
    k_ptr += b * stride_kb + h // group * stride_kh
    v_ptr += b * stride_vb + h // group * stride_vh
    seen_ptr += row * stride_er
    # finite, so that a row which sees no key yet does not make a NaN
    peak = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_V], tl.float32)
    peak_1, total_1, acc_1 = peak, total, acc
    peak_2, total_2, acc_2 = peak, total, acc
    for start in range(part * chunk, tl.minimum((part + 1) * chunk, tokens), BLOCK_N):
        col = start + tl.arange(0, BLOCK_N)
        real = col < tokens
        # k: [BLOCK_N, BLOCK_D], v: [BLOCK_N, BLOCK_V]
        k = load_rows(k_ptr, stride_ks, col, real, DIM, BLOCK_D)
        at = v_ptr + col.to(tl.int64)[:, None] * stride_vs + dims[None, :]
        v = tl.load(at, mask=real[:, None] & (dims < DIM_V)[None, :], other=0.0)
        # s: [ROWS, BLOCK_N]
        s = tl.where(real[None, :], scores(q, k, PRECISION), float("-inf"))
        acc, total, peak = softmax_step(acc, total, peak, s, v, qk_scale, PRECISION)
        s_1 = seen_logits(s, seen_ptr + start // 32, live, BLOCK_N)
        acc_1, total_1, peak_1 = softmax_step(acc_1, total_1, peak_1, s_1, v, qk_scale, PRECISION)
        s_2 = seen_logits(s, seen_ptr + stride_em + start // 32, live, BLOCK_N)
        acc_2, total_2, peak_2 = softmax_step(acc_2, total_2, peak_2, s_2, v, qk_scale, PRECISION)
    # parts: [B * H * tiles, 3, chunks, ROWS, DIM_V]
    part += tile * 3 * chunks
    store_part(acc_ptr, stat_ptr, part, acc, total, peak, dims, DIM_V)
    store_part(acc_ptr, stat_ptr, part + chunks, acc_1, total_1, peak_1, dims, DIM_V)
    store_part(acc_ptr, stat_ptr, part + 2 * chunks, acc_2, total_2, peak_2, dims, DIM_V)


@triton.jit
def merged(
    acc_ptr, stat_ptr, line, chunks, DIM_V: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C:
    tl.constexpr,
):  # fmt: skip
    """Return the output [BLOCK_V] of the query whose parts begin at `line`; 0 if it saw nothing."""
    part = tl.arange(0, BLOCK_C)
    live = part < chunks
    line += part * ROWS
    total = tl.load(stat_ptr + line * 2, mask=live, other=0.0)
    peak = tl.load(stat_ptr + line * 2 + 1, mask=live, other=-1e30)
    weight = tl.exp2(peak - tl.max(peak, 0))
    # acc: [BLOCK_C, BLOCK_V]
    dims = tl.arange(0, BLOCK_V)
    at = acc_ptr + line[:, None] * DIM_V + dims[None, :]
    acc = tl.load(at, mask=live[:, None] & (dims < DIM_V)[None, :], other=0.0)
    # 0, or at least about 1: the part of the highest peak holds its own e^0
    mass = tl.sum(total * weight, 0)
    return tl.sum(acc * weight[:, None], 0) / tl.maximum(mass, 1e-30)


@triton.jit
def merge_kernel(
    acc_ptr, stat_ptr, loss_ptr, total_heads, count, chunks, share, DIM_V: tl.constexpr, BLOCK_V:
    tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) % count
    bh = (tl.program_id(0) // count).to(tl.int64)
    line = ((bh * tl.cdiv(count, ROWS) + row // ROWS) * 3 * chunks) * ROWS + row % ROWS
    full = merged(acc_ptr, stat_ptr, line, chunks, DIM_V, BLOCK_V, BLOCK_C)
    # loss: [2, B * H, R]
    for mask in range(2):
        line += chunks * ROWS
        far = merged(acc_ptr, stat_ptr, line, chunks, DIM_V, BLOCK_V, BLOCK_C) - full
        at = loss_ptr + (mask * total_heads + bh) * count + row
        tl.store(at, tl.sum(far * far, 0) * share)


def masked_losses(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, seen: Tensor, scale: float):
    """Launch both kernels; see losses.masked_losses."""
    q, k, v, seen = (dense_rows(x) for x in (q, k, v, seen))
    batch, heads, _, dim = q.shape
    tokens, dim_v, count = k.shape[2], v.shape[3], len(rows)
    half = q.element_size() == 2
    # 2-byte dtypes neither spill nor serialise their products (sm_90, Triton 3.6 and 3.9); three
    # accumulators of 128 columns of v would not fit in the registers
    block_n, block_v = (64, 64) if half else (32, 32)
    block_v = min(block_v, power_of_2(dim_v))
    tiles, cols = batch * heads * triton.cdiv(count, ROWS.value), triton.cdiv(dim_v, block_v)
    chunks = max(1, min(CHUNKS, PROGRAMS // (tiles * cols), tokens // (TILES * block_n)))
    chunk = triton.cdiv(triton.cdiv(tokens, block_n), chunks) * block_n
    chunks = triton.cdiv(tokens, chunk)
    f32 = {"device": q.device, "dtype": torch.float32}
    acc = torch.empty(tiles, 3, chunks, ROWS.value, dim_v, **f32)
    stat = torch.empty(tiles, 3, chunks, ROWS.value, 2, **f32)
    losses = torch.empty(2, batch, heads, count, **f32)
    chunk_kernel[(tiles * chunks * cols,)](
        q, k, v, rows.contiguous(), seen, acc, stat, *q.stride()[:3], *k.stride()[:3],
        *v.stride()[:3], *seen.stride()[:2], heads, heads // k.shape[1], count, tokens, chunks,
        chunk, scale * 1.4426950408889634, DIM=dim, DIM_V=dim_v, BLOCK_D=power_of_2(dim),
        BLOCK_V=block_v, BLOCK_N=block_n, PRECISION=precision(), num_warps=4,
        num_stages=3 if half and dim <= 128 else 2,
    )  # fmt: skip
    merge_kernel[(batch * heads * count,)](
        acc, stat, losses, batch * heads, count, chunks, 1 / (count * dim_v), DIM_V=dim_v,
        BLOCK_V=power_of_2(dim_v), BLOCK_C=power_of_2(chunks), num_warps=4,
    )  # fmt: skip
    return losses.sum(-1)
