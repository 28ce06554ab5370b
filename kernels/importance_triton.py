"""Triton kernels of importance.sampled_importance: sampled logits once, then block maxima.

The first kernel multiplies a tile of sampled queries with all sampled keys and writes, per query
and key block, the largest logit (or the log of the summed exponentials) and per query z_q; the
second reduces over the queries of each block. The scratch between them, [heads, M * s, N] float32,
is reused for groups of heads. Recomputing the products instead would double the cost, 1/32 of
dense attention. Limits: head dim 256, 128 samples per block. Log2 units inside.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import load_rows, scores
from dit_sparse.kernels._launch import dense_rows, precision
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import per_head

# bytes between the two kernels, for some heads at a time
_SCRATCH = 256 << 20


@triton.jit
def logits_kernel(
    q_ptr, k_ptr, qn_ptr, kn_ptr, best_ptr, z_ptr, stride_qb, stride_qh, stride_qs, stride_kb,
    stride_kh, stride_ks, stride_qn, stride_kn, first, heads, group, rows, cols, qk_scale, DIM:
    tl.constexpr, BLOCK_D: tl.constexpr, S: tl.constexpr, T: tl.constexpr, S_PAD: tl.constexpr,
    T_PAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IS_MEAN: tl.constexpr,
    IS_PEAK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = BLOCK_M // S_PAD
    COLS: tl.constexpr = BLOCK_N // T_PAD
    tiles = tl.cdiv(rows, ROWS)
    # local: number of the head in the scratch; bh: in q
    local = (tl.program_id(0) // tiles).to(tl.int64)
    bh = first + local
    b, h = bh // heads, bh % heads
    at = tl.arange(0, BLOCK_M)
    row = (tl.program_id(0) % tiles) * ROWS + at // S_PAD
    q_seen = at % S_PAD < tl.load(qn_ptr + bh * stride_qn + row, mask=row < rows, other=0)
    line = row * S + at % S_PAD
    # q: [BLOCK_M, BLOCK_D]
    q_ptr += b * stride_qb + h * stride_qh
    q = load_rows(q_ptr, stride_qs, line, q_seen, DIM, BLOCK_D)
    k_ptr += b * stride_kb + h // group * stride_kh
    kn_ptr += (b * (heads // group) + h // group) * stride_kn
    best_ptr += (local * rows * S + line.to(tl.int64)) * cols
    # finite, so that a tile without any real key does not make a NaN
    peak = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, cols, COLS):
        kt = tl.arange(0, BLOCK_N)
        col = start + kt // T_PAD
        k_seen = kt % T_PAD < tl.load(kn_ptr + col, mask=col < cols, other=0)
        # k: [BLOCK_N, BLOCK_D]
        k = load_rows(k_ptr, stride_ks, col * T + kt % T_PAD, k_seen, DIM, BLOCK_D)
        s = tl.where(k_seen[None, :], scores(q, k, PRECISION) * qk_scale, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(s, 1))
        p = tl.exp2(s - new_peak[:, None])
        total = total * tl.exp2(peak - new_peak) + tl.sum(p, 1)
        peak = new_peak
        if IS_MEAN:
            mass = tl.sum(tl.reshape(p, [BLOCK_M, COLS, T_PAD]), 2)
            best = tl.log2(tl.maximum(mass, 1e-37)) + peak[:, None]
            best = tl.where(mass > 0, best, float("-inf"))
        else:
            best = tl.max(tl.reshape(s, [BLOCK_M, COLS, T_PAD]), 2)
        # best: [BLOCK_M, COLS]
        out = start + tl.arange(0, COLS)
        keep = q_seen[:, None] & (out < cols)[None, :]
        tl.store(best_ptr[:, None] + out[None, :], best, mask=keep)
    z = peak if IS_PEAK else peak + tl.log2(total)
    tl.store(z_ptr + local * rows * S + line, z, mask=q_seen)


@triton.jit
def reduce_kernel(
    best_ptr, z_ptr, qn_ptr, kn_ptr, out_ptr, stride_qn, stride_kn, first, heads, group, rows,
    cols, S: tl.constexpr, S_PAD: tl.constexpr, BLOCK_C: tl.constexpr, IS_MEAN: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(cols, BLOCK_C)
    col = (tl.program_id(0) % tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    line = (tl.program_id(0) // tiles).to(tl.int64)
    local, row = line // rows, line % rows
    bh = first + local
    at = tl.arange(0, S_PAD)
    count = tl.load(qn_ptr + bh * stride_qn + row)
    seen = at < count
    # z: [S_PAD], best: [S_PAD, BLOCK_C]
    z = tl.load(z_ptr + line * S + at, mask=seen, other=float("inf"))
    keep = seen[:, None] & (col < cols)[None, :]
    best = tl.load(
        best_ptr + (line * S + at)[:, None] * cols + col[None, :], mask=keep, other=float("-inf")
    )
    p = tl.exp2(best - z[:, None])
    if IS_MEAN:
        kn_ptr += (bh // heads * (heads // group) + bh % heads // group) * stride_kn
        pairs = tl.load(kn_ptr + col, mask=col < cols, other=1) * count
        out = tl.sum(p, 0) / tl.maximum(pairs, 1).to(tl.float32)
    else:
        out = tl.max(p, 0)
    tl.store(out_ptr + (bh * rows + row) * cols + col, out, mask=col < cols)


def sampled_importance(
    q: Tensor, k: Tensor, q_count: Tensor, k_count: Tensor, scale: float, reduce: str, norm: str
) -> Tensor:
    """Launch the two kernels for as many heads at a time as the scratch holds."""
    q, k = dense_rows(q), dense_rows(k)
    batch, heads, kv_heads, dim = *q.shape[:2], k.shape[1], q.shape[3]
    rows, cols = q_count.shape[-1], k_count.shape[-1]
    s, t = q.shape[2] // rows, k.shape[2] // cols
    s_pad, t_pad = (1 << (n - 1).bit_length() for n in (s, t))
    q_count, k_count = (
        per_head(n, batch, h).contiguous() for n, h in ((q_count, heads), (k_count, kv_heads))
    )
    f32 = {"device": q.device, "dtype": torch.float32}
    at_once = min(batch * heads, max(1, _SCRATCH // (4 * rows * s * cols)))
    best, z = torch.empty(at_once, rows * s, cols, **f32), torch.empty(at_once, rows * s, **f32)
    out = torch.empty(batch, heads, rows, cols, **f32)
    # not measured yet: the tiles of the attention kernel's table for this head dim and dtype
    half = q.element_size() == 2
    block_m, block_n = (128, 64) if half and dim <= 128 else (64, 32)
    block_m, block_n = max(block_m, s_pad), max(block_n, t_pad)
    for first in range(0, batch * heads, at_once):
        some = min(at_once, batch * heads - first)
        logits_kernel[(some * triton.cdiv(rows, block_m // s_pad),)](
            q, k, q_count, k_count, best, z, *q.stride()[:3], *k.stride()[:3], rows, cols, first,
            heads, heads // kv_heads, rows, cols, scale * 1.4426950408889634, DIM=dim,
            BLOCK_D=power_of_2(dim), S=s, T=t, S_PAD=s_pad, T_PAD=t_pad, BLOCK_M=block_m,
            BLOCK_N=block_n, IS_MEAN=reduce == "mean", IS_PEAK=norm == "max", PRECISION=precision(),
            num_warps=4 if half else 8, num_stages=3 if half else 2,
        )  # fmt: skip
        block_c = min(128, power_of_2(cols))
        reduce_kernel[(some * rows * triton.cdiv(cols, block_c),)](
            best, z, q_count, k_count, out, rows, cols, first, heads, heads // kv_heads, rows,
            cols, S=s, S_PAD=s_pad, BLOCK_C=block_c, IS_MEAN=reduce == "mean", num_warps=4,
        )  # fmt: skip
    return out
