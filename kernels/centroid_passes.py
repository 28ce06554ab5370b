"""Triton kernels over tokens and centroids: the nearest centroid, and the error of a cluster mean.

One program per (tile of tokens, head), or per (tile of query centroids, key block, head); neither
[S, C] distances nor [C, S] logits are written. Launched by kmeans.py and probe.py, which state
formulas, shapes and users. Limits: head dims up to 256 (probe: 128), no float64.
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


@triton.jit
def assign_kernel(
    x_ptr, near_ptr, norm_ptr, label_ptr, stride_xb, stride_xh, stride_xs, heads, tokens, clusters,
    tiles, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(0) // tiles
    rows = (tl.program_id(0) % tiles) * BLOCK_S + tl.arange(0, BLOCK_S)
    x_ptr += (bh // heads).to(tl.int64) * stride_xb + (bh % heads).to(tl.int64) * stride_xh
    near_ptr += bh.to(tl.int64) * clusters * DIM
    norm_ptr += bh.to(tl.int64) * clusters
    # x: [BLOCK_S, BLOCK_D]
    x = load_rows(x_ptr, stride_xs, rows, rows < tokens, DIM, BLOCK_D)
    best = tl.full([BLOCK_S], float("inf"), tl.float32)
    label = tl.zeros([BLOCK_S], tl.int32)
    for first in range(0, clusters, BLOCK_C):
        cols = first + tl.arange(0, BLOCK_C)
        # near: [BLOCK_C, BLOCK_D], norm: [BLOCK_C]
        near = load_rows(near_ptr, DIM, cols, cols < clusters, DIM, BLOCK_D)
        norm = tl.load(norm_ptr + cols, mask=cols < clusters, other=float("inf"))
        far = norm[None, :] - 2.0 * scores(x, near, PRECISION)
        low, at = tl.min(far, 1, return_indices=True)
        # strictly less: among equals the first centroid stays
        closer = low < best
        best = tl.where(closer, low, best)
        label = tl.where(closer, first + at.to(tl.int32), label)
    tl.store(label_ptr + bh.to(tl.int64) * tokens + rows, label, mask=rows < tokens)


@triton.jit
def probe_kernel(
    q_ptr, k_ptr, v_ptr, k_mean_ptr, v_mean_ptr, offsets_ptr, out_ptr, stride_kb, stride_kh,
    stride_ks, stride_vb, stride_vh, stride_vs, stride_fb, stride_fh, heads, group, rows, blocks,
    tiles, tokens, scale, DIM: tl.constexpr, DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V:
    tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, SIZE: tl.constexpr, IS_UNIFORM:
    tl.constexpr, HAS_VALUES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # query tiles fastest: the programs that run together share one block's keys in L2
    tile = tl.program_id(0) % tiles
    block = tl.program_id(0) // tiles % blocks
    bh = tl.program_id(0) // tiles // blocks
    b = (bh // heads).to(tl.int64)
    h = (bh % heads // group).to(tl.int64)
    mean = (b * (heads // group) + h) * blocks + block
    start, end = block_range(
        block, offsets_ptr + b * stride_fb + h * stride_fh, tokens, SIZE, IS_UNIFORM, True
    )
    d = tl.arange(0, BLOCK_D)
    c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    at = out_ptr + (bh.to(tl.int64) * rows + c) * blocks + block
    if end - start <= 1:
        tl.store(at, tl.full([BLOCK_C], float("-inf"), tl.float32), mask=c < rows)
        return
    # q: [BLOCK_C, BLOCK_D], k_mean: [BLOCK_D]
    q = load_rows(q_ptr + bh.to(tl.int64) * rows * DIM, DIM, c, c < rows, DIM, BLOCK_D)
    k_mean = tl.load(k_mean_ptr + mean * DIM + d, mask=d < DIM, other=0.0)
    centre = tl.sum(q.to(tl.float32) * k_mean[None, :], 1) * scale
    if HAS_VALUES:
        e = tl.arange(0, BLOCK_V)
        # v_mean: [BLOCK_V]
        v_mean = tl.load(v_mean_ptr + mean * DIM_V + e, mask=e < DIM_V, other=0.0)
        square = tl.sum(v_mean * v_mean, 0)
    k_ptr += b * stride_kb + h * stride_kh
    v_ptr += b * stride_vb + h * stride_vh
    top = centre
    total = tl.zeros([BLOCK_C], tl.float32)
    for first in range(start, end, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        live = n < end
        # k: [BLOCK_N, BLOCK_D]
        k = load_rows(k_ptr, stride_ks, n, live, DIM, BLOCK_D)
        s = tl.where(live[None, :], scores(q, k, PRECISION) * scale, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1))
        weight = tl.exp(s - new[:, None])
        gap = tl.where(live[None, :], tl.exp(centre - new)[:, None] - weight, 0.0)
        error = gap * gap
        if HAS_VALUES:
            # v: [BLOCK_N, BLOCK_V]; its distance from the mean, 0 where there is no token
            v = load_rows(v_ptr, stride_vs, n, live, DIM_V, BLOCK_V).to(tl.float32)
            off = tl.where(live[:, None], v - v_mean[None, :], 0.0)
            cross = tl.sum(off * v_mean[None, :], 1)
            spread = tl.sum(off * off, 1)
            error = error * square - 2.0 * gap * weight * cross[None, :]
            error += weight * weight * spread[None, :]
        total = total * tl.exp(2.0 * (top - new)) + tl.sum(error, 1)
        top = new
    # an error of 0, or below it by rounding, is -inf; a nan stays one
    found = 2.0 * top + tl.log(tl.where(total <= 0, 1.0, total))
    found = tl.where(total <= 0, float("-inf"), found)
    tl.store(at, found, mask=c < rows)


def assign(x: Tensor, near: Tensor, norm: Tensor) -> Tensor:
    """Launch assign_kernel; see kmeans.assign. Returns int32."""
    x, near, norm = dense_rows(x), near.contiguous(), norm.contiguous()
    batch, heads, tokens, dim = x.shape
    clusters, small = near.shape[2], x.element_size() == 2
    label = torch.empty(batch, heads, tokens, device=x.device, dtype=torch.int32)
    block_d = power_of_2(dim)
    # registers: two programs per multiprocessor at head dim 128, none spills (ptxas, sm_90)
    large = small and block_d <= 128
    block_s = min(128 if large else 64, power_of_2(tokens))
    block_c = min(64 if large else 32, power_of_2(clusters))
    tiles = triton.cdiv(tokens, block_s)
    assign_kernel[(batch * heads * tiles,)](
        x, near, norm, label, *x.stride()[:3], heads, tokens, clusters, tiles, DIM=dim,
        BLOCK_D=block_d, BLOCK_S=block_s, BLOCK_C=block_c, PRECISION=precision(),
        num_warps=4, num_stages=2 if small else 1,
    )  # fmt: skip
    return label


def probe_error(
    q: Tensor, k: Tensor, v: Tensor, k_mean: Tensor, v_mean: Tensor, cut: Cut, scale: float,
    values: bool,
) -> Tensor:  # fmt: skip
    """Launch probe_kernel; see probe.probe_error."""
    q, k_mean, v_mean = q.contiguous(), k_mean.contiguous(), v_mean.contiguous()
    k, v = dense_rows(k), dense_rows(v)
    batch, heads, rows, dim = q.shape
    tokens, dim_v, blocks = k.shape[2], v.shape[3], k_mean.shape[2]
    uniform, offsets = cut.offsets is None, head_offsets(cut, k)
    found = torch.empty(batch, heads, rows, blocks, device=k.device, dtype=torch.float32)
    block_c = min(64, power_of_2(rows))
    tiles = triton.cdiv(rows, block_c)
    probe_kernel[(batch * heads * blocks * tiles,)](
        q, k, v, k_mean, v_mean, offsets, found, *k.stride()[:3], *v.stride()[:3],
        *offsets.stride()[:2], heads, heads // k.shape[1], rows, blocks, tiles, tokens, scale,
        DIM=dim, DIM_V=dim_v, BLOCK_D=power_of_2(dim), BLOCK_V=power_of_2(dim_v), BLOCK_C=block_c,
        BLOCK_N=32, SIZE=cut.size if uniform else 0, IS_UNIFORM=uniform, HAS_VALUES=values,
        PRECISION=precision(), num_warps=4, num_stages=2 if k.element_size() == 2 else 1,
    )  # fmt: skip
    return found
