"""Passes over tokens and centroids: k-means, and the error of a cluster mean.

Launched by kmeans.py and probe.py, which state formulas, shapes and users; the kernels of k-means
are in _kmeans.py. `probe_kernel`: one program per (tile of query centroids, key block, head), no
[C, S] logits are written. Limits: head dims up to 256 (probe: 128), no float64.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import block_range, load_rows, scores
from dit_sparse.kernels._kmeans import (
    Side,
    assign_kernel,
    mean_kernel,
    place_kernel,
    prefix_kernel,
    prepare_kernel,
)
from dit_sparse.kernels._launch import dense_rows, head_offsets, precision
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import Cut


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


def _tile(x: Tensor) -> tuple[int, int]:
    """Return the tokens and the centroids of one product of `assign_kernel`; ptxas for sm_90 spills
    none of them but float32 with a head dim above 128."""
    if x.element_size() == 2:
        return (128 if x.shape[3] <= 128 else 64), 64
    return 64, 32 if x.shape[3] <= 128 else 16


def _side(x: Tensor, start: Tensor) -> tuple[Side, int]:
    """Return x [B, H, S, D] with what the kernels write, and the size of a smaller last tile of
    centroids (0: none)."""
    x = dense_rows(x)
    batch, heads, tokens, dim = x.shape
    groups, clusters, (block_m, block_c) = batch * heads, start.shape[2], _tile(x)
    tiles, rest = triton.cdiv(tokens, block_m), clusters % block_c
    last = power_of_2(rest) if rest and x.element_size() == 2 else 0
    last = last if last < block_c else 0
    padded = clusters - rest + (last or block_c if rest else 0)

    def make(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(groups, *shape, device=x.device, dtype=dtype)

    return Side(
        x, start.contiguous(), make(clusters, dim, dtype=torch.float32),
        make(padded, power_of_2(dim), dtype=x.dtype), make(padded, dtype=torch.float32),
        make(tokens), make(tiles, padded), make(padded), make(tokens, dtype=torch.int64),
        make(clusters + 1), *x.stride()[:3], heads, groups, tokens, tiles, clusters, padded,
    ), last  # fmt: skip


def _assign(sides: tuple[Side, ...], lasts: tuple[int, ...]) -> None:
    x = sides[0].x
    small, (block_m, block_c), block_d = x.element_size() == 2, _tile(x), power_of_2(x.shape[3])
    # three programs of 4 warps fill a multiprocessor: one multiplies while the others compare
    limit = {"maxnreg": 168} if small and torch.version.hip is None else {}
    assign_kernel[(sum(s.groups * s.tiles for s in sides),)](
        sides, LASTS=lasts, DIM=x.shape[3], BLOCK_D=block_d, BLOCK_M=block_m, BLOCK_C=block_c,
        PRECISION=precision(), num_warps=4, num_stages=2 if small else 1, **limit,
    )  # fmt: skip


def _prepared(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[tuple[Side, ...], tuple[int, ...]]:
    """Return the sides, centroids at their start, and the sizes of their last tiles."""
    sides, lasts = zip(*(_side(x, start) for x, start in pairs), strict=True)
    dim = sides[0].x.shape[3]
    prepare_kernel[(sum(s.groups * s.padded // 16 for s in sides),)](
        sides, DIM=dim, BLOCK_D=power_of_2(dim), ROWS=16, num_warps=4
    )
    return sides, lasts


def assign(x: Tensor, centroids: Tensor) -> Tensor:
    """Launch assign_kernel; see kmeans.assign. Returns int32."""
    sides, lasts = _prepared([(x, centroids)])
    _assign(sides, lasts)
    return sides[0].slot.view(x.shape[:3]) // _tile(x)[0]


def kmeans(
    pairs: Sequence[tuple[Tensor, Tensor]], iterations: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Launch four kernels an iteration; see kmeans.kmeans."""
    sides, lasts = _prepared(pairs)
    block_m, dim = _tile(sides[0].x)[0], sides[0].x.shape[3]
    bins = tuple(power_of_2(s.clusters + 1) for s in sides)
    warps = min(16, max(4, max(bins) // 512))
    for _ in range(iterations):
        _assign(sides, lasts)
        prefix_kernel[(sum(s.groups * triton.cdiv(s.padded, 16) for s in sides),)](
            sides, TILES=256, BLOCK=16, num_warps=4
        )
        place_kernel[(sum(s.groups * triton.cdiv(s.tokens, 1024) for s in sides),)](
            sides, BINS=bins, BLOCK_M=block_m, CHUNK=1024, num_warps=warps
        )
        mean_kernel[(sum(s.groups * s.clusters for s in sides),)](
            sides, DIM=dim, BLOCK_D=power_of_2(dim), TILE=32, STAGES=4, num_warps=4
        )
    shapes = [x.shape[:2] for x, _ in pairs]
    return [
        tuple(t.unflatten(0, at) for t in (s.centroid, s.order, s.offsets))
        for s, at in zip(sides, shapes, strict=True)
    ]


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
