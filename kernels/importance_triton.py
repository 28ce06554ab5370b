"""Triton kernels of importance.sampled_importance and strata.sample_strata.

`importance_kernel` takes tiles of sampled queries in turn. It multiplies one with all sampled keys
and keeps, per key block and query, the largest logit (or the log of the summed exponentials) in a
scratch of its own [N, BLOCK_M] float32, reused for its next tile; then z_q is known, and it reduces
over the queries of each block. Recomputing the products instead would double the cost, 1/32 of
dense attention. Leading key blocks without a missing sample need no mask. Limits: head dim 256,
128 samples per block. Log2 units inside.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import block_range, load_rows, scores, store_rows
from dit_sparse.kernels._launch import dense_rows, head_offsets, precision
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import Cut, per_head
from dit_sparse.kernels.strata import BITS

# programs of the interpreter, few enough that each takes several tiles
_PROGRAMS = 3
# (block_m, block_n, num_warps, num_stages, programs per multiprocessor), not measured yet. 2-byte
# types: two programs of 128 threads fill the registers, so that one multiplies while the other
# reduces; tiles of 128 keys spill
_HALF = (128, 64, 4, 3, 2)
# head dims above 128, float32
_WIDE = (64, 64, 4, 2, 2)
_SINGLE = (64, 32, 4, 2, 1)


@triton.jit
def fold_keys(
    peak, total, s, out, best_ptr, keep, qk_scale, T_PAD: tl.constexpr, IS_MEAN: tl.constexpr,
    IS_PEAK: tl.constexpr,
):  # fmt: skip
    """Fold raw logits s [BLOCK_M, BLOCK_N] into (peak, total) [BLOCK_M]; store each block's best.

    out: [COLS] key blocks, of which `keep` exist.
    """
    BLOCK_M: tl.constexpr = s.shape[0]
    COLS: tl.constexpr = s.shape[1] // T_PAD
    # best: [BLOCK_M, COLS]; the row's peak follows from it
    best = tl.max(tl.reshape(s, [BLOCK_M, COLS, T_PAD]), 2) * qk_scale
    new_peak = tl.maximum(peak, tl.max(best, 1))
    if IS_MEAN or not IS_PEAK:
        p = tl.exp2(s * qk_scale - new_peak[:, None])
        total *= tl.exp2(peak - new_peak)
        if IS_MEAN:
            mass = tl.sum(tl.reshape(p, [BLOCK_M, COLS, T_PAD]), 2)
            total += tl.sum(mass, 1)
            best = tl.log2(tl.maximum(mass, 1e-37)) + new_peak[:, None]
            best = tl.where(mass > 0, best, float("-inf"))
        else:
            total += tl.sum(p, 1)
    # beside each other: the queries of one key block
    at = out[None, :] * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    tl.store(best_ptr + at, best, mask=keep[None, :])
    return new_peak, total


@triton.jit
def importance_kernel(
    q_ptr, k_ptr, qn_ptr, kn_ptr, best_ptr, out_ptr, stride_qb, stride_qh, stride_qs, stride_kb,
    stride_kh, stride_ks, stride_qnb, stride_qnh, stride_knb, stride_knh, tiles, heads, group, rows,
    cols, qk_scale, DIM: tl.constexpr, BLOCK_D: tl.constexpr, S: tl.constexpr, T: tl.constexpr,
    S_PAD: tl.constexpr, T_PAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, IS_MEAN: tl.constexpr, IS_PEAK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = BLOCK_M // S_PAD
    COLS: tl.constexpr = BLOCK_N // T_PAD
    best_ptr += tl.program_id(0).to(tl.int64) * cols * BLOCK_M
    at = tl.arange(0, BLOCK_M)
    kt = tl.arange(0, BLOCK_N)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        bh = (tile // tl.cdiv(rows, ROWS)).to(tl.int64)
        b, h = bh // heads, bh % heads
        first = tile % tl.cdiv(rows, ROWS) * ROWS
        row = first + at // S_PAD
        qn = qn_ptr + b * stride_qnb + h * stride_qnh
        kn = kn_ptr + b * stride_knb + h // group * stride_knh
        q_seen = at % S_PAD < tl.load(qn + row, mask=row < rows, other=0)
        # q: [BLOCK_M, BLOCK_D]
        head_ptr = q_ptr + b * stride_qb + h * stride_qh
        q = load_rows(head_ptr, stride_qs, row * S + at % S_PAD, q_seen, DIM, BLOCK_D)
        head_ptr = k_ptr + b * stride_kb + h // group * stride_kh
        # finite, so that a tile without any real key does not make a NaN
        peak = tl.full([BLOCK_M], -1e30, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        # whole: leading key blocks that need no mask
        whole = cols * (T == T_PAD)
        for base in range(0, whole, 1024):
            col = base + tl.arange(0, 1024)
            short = tl.load(kn + col, mask=col < cols, other=T) < T
            whole = tl.minimum(whole, tl.min(tl.where(short, col, cols), 0))
        whole = whole // COLS * COLS
        for start in range(0, whole, COLS):
            # k: [BLOCK_N, BLOCK_D]
            k = load_rows(head_ptr, stride_ks, start * T + kt, kt >= 0, DIM, BLOCK_D)
            col = start + tl.arange(0, COLS)
            peak, total = fold_keys(
                peak, total, scores(q, k, PRECISION), col, best_ptr, col >= 0, qk_scale, T_PAD,
                IS_MEAN, IS_PEAK,
            )  # fmt: skip
        # few as a rule: registers are better spent above
        for start in tl.range(whole, cols, COLS, num_stages=1):
            col = start + kt // T_PAD
            k_seen = kt % T_PAD < tl.load(kn + col, mask=col < cols, other=0)
            k = load_rows(head_ptr, stride_ks, col * T + kt % T_PAD, k_seen, DIM, BLOCK_D)
            s = tl.where(k_seen[None, :], scores(q, k, PRECISION), float("-inf"))
            col = start + tl.arange(0, COLS)
            peak, total = fold_keys(
                peak, total, s, col, best_ptr, col < cols, qk_scale, T_PAD, IS_MEAN, IS_PEAK
            )
        # z: [BLOCK_M]; a query that is no token weighs nothing
        z = peak if IS_PEAK else peak + tl.log2(total)
        z = tl.where(q_seen, z, float("inf"))
        row = first + tl.arange(0, ROWS)
        q_count = tl.load(qn + row, mask=row < rows, other=0)
        # the scratch is written, and read by other threads
        tl.debug_barrier()
        for base in range(0, cols, BLOCK_C):
            col = base + tl.arange(0, BLOCK_C)
            # best: [BLOCK_C, BLOCK_M]
            place = col[:, None] * BLOCK_M + at[None, :]
            best = tl.load(best_ptr + place, mask=(col < cols)[:, None], other=float("-inf"))
            best = tl.reshape(best - z[None, :], [BLOCK_C, ROWS, S_PAD])
            if IS_MEAN:
                k_count = tl.load(kn + col, mask=col < cols, other=0)
                pairs = tl.maximum(k_count[:, None] * q_count[None, :], 1)
                out = tl.sum(tl.exp2(best), 2) / pairs.to(tl.float32)
            else:
                out = tl.exp2(tl.max(best, 2))
            # out: [BLOCK_C, ROWS]
            place = (bh * rows + row)[None, :] * cols + col[:, None]
            tl.store(out_ptr + place, out, mask=(col < cols)[:, None] & (row < rows)[None, :])
        # read by all, before the next tile is written
        tl.debug_barrier()


@triton.jit(do_not_specialize=["shift"])
def sample_kernel(
    x_ptr, out_ptr, count_ptr, offsets_ptr, stride_xb, stride_xh, stride_xs, stride_fb, stride_fh,
    heads, blocks, tokens, count_batch, count_heads, shift, S: tl.constexpr, SIZE: tl.constexpr,
    IS_UNIFORM: tl.constexpr, WALK: tl.constexpr, FRACTION: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(blocks * S, TILE)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = head // heads, head % heads
    # sample: [TILE], counted over the blocks
    sample = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    live = sample < blocks * S
    start, end = block_range(
        sample // S, offsets_ptr + b * stride_fb + h * stride_fh, tokens, SIZE, IS_UNIFORM, live
    )
    n = end - start
    count = tl.minimum((n * S + SIZE - 1) // SIZE, S)
    stratum = (sample % S).to(tl.int64)
    inside = (stratum * WALK + shift) & ((1 << FRACTION) - 1)
    at = ((stratum << FRACTION) + inside) * n // tl.maximum(count, 1) >> FRACTION
    at = tl.minimum(tl.minimum(at, tl.maximum(n - 1, 0)) + start, tokens - 1)
    x = load_rows(x_ptr + b * stride_xb + h * stride_xh, stride_xs, at, live, DIM, BLOCK_D)
    store_rows(out_ptr + head * blocks * S * DIM, DIM, sample, live, x, DIM, BLOCK_D)
    # heads with the same cut share their counts
    last = tl.where((b < count_batch) & (h < count_heads), blocks * S, 0)
    count_ptr += (b * count_heads + h) * blocks
    tl.store(count_ptr + sample // S, count, mask=(sample % S == 0) & (sample < last))


def sample_strata(x: Tensor, cut: Cut, s: int, walk: int, shift: int) -> tuple[Tensor, Tensor]:
    """Launch sample_kernel; see strata.sample_strata. walk, shift: in 1 / strata.ONE."""
    x, offsets = dense_rows(x), head_offsets(cut, x)
    batch, heads, tokens, dim = x.shape
    blocks, block_d = cut.count(tokens), power_of_2(dim)
    shared = (1, 1) if cut.offsets is None else tuple(cut.offsets.shape[:2])
    out = torch.empty(batch, heads, blocks * s, dim, device=x.device, dtype=x.dtype)
    count = torch.empty(*shared, blocks, device=x.device, dtype=torch.int32)
    tile = 4096 // block_d
    sample_kernel[(batch * heads * triton.cdiv(blocks * s, tile),)](
        x, out, count, offsets, *x.stride()[:3], *offsets.stride()[:2], heads, blocks, tokens,
        *shared, shift, S=s, SIZE=cut.size, IS_UNIFORM=cut.offsets is None, WALK=walk,
        FRACTION=BITS, DIM=dim, BLOCK_D=block_d, TILE=tile, num_warps=4,
    )  # fmt: skip
    return out, count


def sampled_importance(
    q: Tensor, k: Tensor, q_count: Tensor, k_count: Tensor, scale: float, reduce: str, norm: str
) -> Tensor:
    """Launch importance_kernel, as many programs as the device holds at a time."""
    q, k = dense_rows(q), dense_rows(k)
    batch, heads, kv_heads, dim = *q.shape[:2], k.shape[1], q.shape[3]
    rows, cols = q_count.shape[-1], k_count.shape[-1]
    s, t = q.shape[2] // rows, k.shape[2] // cols
    s_pad, t_pad = (1 << (n - 1).bit_length() for n in (s, t))
    q_count = per_head(dense_rows(q_count), batch, heads)
    k_count = per_head(dense_rows(k_count), batch, kv_heads)
    half = _HALF if dim <= 128 else _WIDE
    config = half if q.element_size() == 2 else _SINGLE
    block_m, block_n, num_warps, num_stages, programs = config
    block_m, block_n = max(block_m, s_pad), max(block_n, t_pad)
    tiles = batch * heads * triton.cdiv(rows, block_m // s_pad)
    if q.is_cuda:
        programs *= torch.cuda.get_device_properties(q.device).multi_processor_count
    else:
        programs = _PROGRAMS
    programs = min(programs, tiles)
    f32 = {"device": q.device, "dtype": torch.float32}
    best = torch.empty(programs, cols, block_m, **f32)
    out = torch.empty(batch, heads, rows, cols, **f32)
    importance_kernel[(programs,)](
        q, k, q_count, k_count, best, out, *q.stride()[:3], *k.stride()[:3], *q_count.stride()[:2],
        *k_count.stride()[:2], tiles, heads, heads // kv_heads, rows, cols,
        scale * 1.4426950408889634, DIM=dim, BLOCK_D=power_of_2(dim), S=s, T=t, S_PAD=s_pad,
        T_PAD=t_pad, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_C=min(64, power_of_2(cols)),
        IS_MEAN=reduce == "mean", IS_PEAK=norm == "max", PRECISION=precision(),
        num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return out
