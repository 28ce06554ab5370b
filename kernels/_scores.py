"""Triton kernel of scores between block means: product, weights and softmax of a row in one launch.

One program per head and some query blocks: it goes over the key blocks once, and once more over its
own logits where they are normalised. Launched by scores.py, which states formula, shapes and users.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import block_range, load_rows, scores
from dit_sparse.kernels._launch import dense_rows, head_offsets, precision
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import Cut

_COLS = 64


def _tile(heads: int, rows: int) -> int:
    """Return the query blocks of a program: few, as long as all programs run at once.

    Each goes over the key blocks from the first to the last, and waits for most of that time; two
    run on a multiprocessor, for want of registers.
    """
    return 16 if heads * -(-rows // 16) <= 264 else 32


@triton.jit
def fold_sum(peak, total, s):
    """Return the running maximum and sum of exponentials [M] after logits s [M, N]."""
    top = tl.maximum(peak, tl.max(s, 1))
    # a row of -inf alone has no maximum to subtract
    safe = tl.where(top == float("-inf"), 0.0, top)
    return top, total * tl.exp(peak - safe) + tl.sum(tl.exp(s - safe[:, None]), 1)


@triton.jit
def score_kernel(
    q_ptr, k_ptr, out_ptr, offsets_ptr, weight_ptr, text_ptr, stride_qb, stride_qh, stride_qs,
    stride_kb, stride_kh, stride_ks, stride_fb, stride_fh, stride_wb, stride_wh, stride_tb,
    stride_th, stride_ts, heads, group, rows, cols, texts, tokens, scale, eps, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_CUT: tl.constexpr, IS_UNIFORM: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_TEXT:
    tl.constexpr, IS_SOFTMAX: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = (rows + BLOCK_M - 1) // BLOCK_M
    bh = tl.program_id(0) // tiles
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    hk = h // group
    row = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    offsets_ptr += b * stride_fb + h * stride_fh
    weight_ptr += b * stride_wb + hk * stride_wh
    # q: [BLOCK_M, BLOCK_D] float32
    q = load_rows(q_ptr + b * stride_qb + h * stride_qh, stride_qs, row, row < rows, DIM, BLOCK_D)
    q = q.to(tl.float32) * scale
    k_ptr += b * stride_kb + hk * stride_kh
    out_ptr += bh.to(tl.int64) * rows * cols
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    line = row.to(tl.int64)[:, None] * cols
    for base in range(0, cols, BLOCK_N):
        col = base + tl.arange(0, BLOCK_N)
        live = col < cols
        # k: [BLOCK_N, BLOCK_D]
        k = load_rows(k_ptr, stride_ks, col, live, DIM, BLOCK_D).to(tl.float32)
        s = scores(q, k, PRECISION)
        if HAS_CUT:
            start, end = block_range(col, offsets_ptr, tokens, SIZE, IS_UNIFORM, live)
            size = (end - start).to(tl.float32)
            own = tl.where(size > 0, tl.log(tl.maximum(size, 1.0)), float("-inf"))
            s += own[None, :]
        if HAS_WEIGHT:
            s += tl.log(tl.load(weight_ptr + col, mask=live, other=1.0) + eps)[None, :]
        tl.store(out_ptr + line + col[None, :], s, mask=(row < rows)[:, None] & live[None, :])
        if IS_SOFTMAX:
            peak, total = fold_sum(peak, total, tl.where(live[None, :], s, float("-inf")))
    if HAS_TEXT:
        text_ptr += b * stride_tb + hk * stride_th
        for base in range(0, texts, BLOCK_N):
            col = base + tl.arange(0, BLOCK_N)
            # text: [BLOCK_N, BLOCK_D]
            k = load_rows(text_ptr, stride_ts, col, col < texts, DIM, BLOCK_D).to(tl.float32)
            s = tl.where((col < texts)[None, :], scores(q, k, PRECISION), float("-inf"))
            peak, total = fold_sum(peak, total, s)
    if IS_SOFTMAX:
        # the logits of this program are read again by other threads than have written them
        tl.debug_barrier()
        for base in range(0, cols, 2 * BLOCK_N):
            col = base + tl.arange(0, 2 * BLOCK_N)
            keep = (row < rows)[:, None] & (col < cols)[None, :]
            s = tl.load(out_ptr + line + col[None, :], mask=keep, other=0.0)
            p = tl.exp(s - peak[:, None]) / total[:, None]
            tl.store(out_ptr + line + col[None, :], p, mask=keep)


def pooled_scores(
    q: Tensor, k: Tensor, scale: float, cut: Cut | None, tokens: int, weight: Tensor | None, eps:
    float, text: Tensor | None, softmax: bool,
) -> Tensor:  # fmt: skip
    """Launch score_kernel; see scores.pooled_scores."""
    q, k = dense_rows(q), dense_rows(k)
    batch, heads, rows, dim = q.shape
    cols, uniform = k.shape[2], cut is None or cut.offsets is None
    tile = _tile(batch * heads, rows)
    out = torch.empty(batch, heads, rows, cols, device=q.device, dtype=torch.float32)
    offsets = q if cut is None else head_offsets(cut, q)
    weight_ = k if weight is None else weight.expand(batch, k.shape[1], cols)
    text_ = k if text is None else dense_rows(text)
    score_kernel[(batch * heads * -(-rows // tile),)](
        q, k, out, offsets, weight_, text_, *q.stride()[:3], *k.stride()[:3],
        *offsets.stride()[:2], *weight_.stride()[:2], *text_.stride()[:3], heads, heads //
        k.shape[1], rows, cols, text_.shape[2], tokens, scale, eps, DIM=dim,
        BLOCK_D=power_of_2(dim), SIZE=cut.size if cut is not None and uniform else 1,
        BLOCK_M=tile, BLOCK_N=_COLS, HAS_CUT=cut is not None, IS_UNIFORM=uniform,
        HAS_WEIGHT=weight is not None, HAS_TEXT=text is not None, IS_SOFTMAX=softmax,
        PRECISION=precision(), num_warps=4, num_stages=2,
    )  # fmt: skip
    return out
