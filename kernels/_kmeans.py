"""Triton kernels of k-means: nearest centroid, counting sort, means of the sorted runs.

Four launches an iteration, each for all heads of several tensors ("sides", say queries and keys):

    assign   tokens x centroids by tensor cores, the best kept in registers; a token's rank among
             those of its tile with the same label, and how many tokens of the tile each label has
    prefix   these counts, summed over the tiles before
    place    where each cluster starts, and every token to its place: start + prefix + rank
    mean     the means of the runs, and what the next assignment compares with

Only whole numbers are added atomically, and no place depends on who comes first: equal input gives
equal output. Launched by centroid_passes.py, which states formulas and users. Limits: head dims up
to 256, no float64.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import dot, load_rows, store_rows

# half the norm of a centroid that is none: far from all, and finite
_NOWHERE = tl.constexpr(-1e38)


class Side(NamedTuple):
    """One tensor to cluster, and what the kernels write about it; G = batch x heads.

    x: [B, H, S, D] by strides; start: [G, C, D] any floating, where the centroids begin
    centroid: [G, C, D] float32; near: [G, padded, BLOCK_D], the same in x's dtype; bias:
        [G, padded] float32, -|near|^2 / 2
    slot: [G, S] int32, label * BLOCK_M + rank in the tile; table: [G, tiles, padded] int32, tokens
        of a label in the tile, after `prefix` in all tiles before; total: [G, padded] int32
    order: [G, S] int64; offsets: [G, C + 1] int32
    """

    x: Tensor
    start: Tensor
    centroid: Tensor
    near: Tensor
    bias: Tensor
    slot: Tensor
    table: Tensor
    total: Tensor
    order: Tensor
    offsets: Tensor
    stride_xb: int
    stride_xh: int
    stride_xs: int
    heads: int
    groups: int
    tokens: int
    tiles: int
    clusters: int
    padded: int


@triton.jit
def settle(side, group, rows, mean, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write mean [rows, BLOCK_D] as centroid, and as what tokens are compared with."""
    live = rows < side.clusters
    store_rows(side.centroid + group * side.clusters * DIM, DIM, rows, live, mean, DIM, BLOCK_D)
    near = mean.to(side.near.dtype.element_ty)
    at = group * side.padded + rows
    keep = rows < side.padded
    store_rows(side.near, BLOCK_D, at, keep, near, BLOCK_D, BLOCK_D)
    wide = near.to(tl.float32)
    bias = tl.where(live, -0.5 * tl.sum(wide * wide, 1), _NOWHERE)
    tl.store(side.bias + at, bias, mask=keep)


@triton.jit
def prepare_kernel(sides, DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr):
    program = tl.program_id(0)
    for i in tl.static_range(len(sides)):
        side = sides[i]
        tiles = side.padded // ROWS
        if (program >= 0) & (program < side.groups * tiles):
            group = (program // tiles).to(tl.int64)
            rows = program % tiles * ROWS + tl.arange(0, ROWS)
            # start: [ROWS, BLOCK_D]
            start = side.start + group * side.clusters * DIM
            mean = load_rows(start, DIM, rows, rows < side.clusters, DIM, BLOCK_D)
            settle(side, group, rows, mean.to(tl.float32), DIM, BLOCK_D)
        program -= side.groups * tiles


@triton.jit
def nearer(
    best, label, x, far, near_ptr, bias_ptr, first, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold centroids first .. first + BLOCK_C into the best value and label of each token.

    best: [BLOCK_M] int32. Scores are below 0: as whole numbers the best is the smallest. The column
    takes the place of the lowest bits, so that one minimum finds both, among equals the first.
    """
    lane = tl.arange(0, BLOCK_C)
    # near: [BLOCK_C, BLOCK_D], bias: [BLOCK_C]; both are padded to whole tiles
    near = load_rows(near_ptr, BLOCK_D, first + lane, lane >= 0, BLOCK_D, BLOCK_D)
    bias = tl.load(bias_ptr + first + lane)
    score = dot(x, tl.trans(near), far[:, None] + bias[None, :], PRECISION)
    key = (score.to(tl.int32, bitcast=True) | (BLOCK_C - 1)) + (lane - (BLOCK_C - 1))[None, :]
    top = tl.min(key, 1)
    value = top | (BLOCK_C - 1)
    # strictly: among equals the first centroid stays
    closer = value < best
    return tl.where(closer, value, best), tl.where(closer, first + (top & (BLOCK_C - 1)), label)


@triton.jit
def assign_tile(
    side, program, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C:
    tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    group = (program // side.tiles).to(tl.int64)
    at = tl.arange(0, BLOCK_M)
    rows = program % side.tiles * BLOCK_M + at
    table = side.table + program.to(tl.int64) * side.padded
    for first in range(0, side.padded, BLOCK_M):
        tl.store(table + first + at, tl.zeros([BLOCK_M], tl.int32), mask=first + at < side.padded)
    b, h = group // side.heads, group % side.heads
    x_ptr = side.x + b * side.stride_xb + h * side.stride_xh
    # x: [BLOCK_M, BLOCK_D]
    x = load_rows(x_ptr, side.stride_xs, rows, rows < side.tokens, DIM, BLOCK_D)
    wide = x.to(tl.float32)
    # x . c - |c|^2 / 2 - |x|^2 / 2 is never above 0; a little more keeps rounding below it
    far = -0.50390625 * tl.sum(wide * wide, 1) - 1e-30
    near_ptr = side.near + group * side.padded * BLOCK_D
    bias_ptr = side.bias + group * side.padded
    best = tl.full([BLOCK_M], 0x7FFFFFFF, tl.int32)
    label = tl.zeros([BLOCK_M], tl.int32)
    for first in range(0, side.padded - LAST, BLOCK_C):
        best, label = nearer(
            best, label, x, far, near_ptr, bias_ptr, first, BLOCK_D, BLOCK_C, PRECISION
        )
    if LAST > 0:
        first = side.padded - LAST
        best, label = nearer(
            best, label, x, far, near_ptr, bias_ptr, first, BLOCK_D, LAST, PRECISION
        )
    # what is beyond float32 must not lead out of the table
    label = tl.minimum(label, side.clusters - 1)
    same = (label[:, None] == label[None, :]) & (at[:, None] > at[None, :])
    rank = tl.sum(same.to(tl.int32), 1)
    keep = rows < side.tokens
    tl.store(side.slot + group * side.tokens + rows, label * BLOCK_M + rank, mask=keep)
    # the zeros above are written before anything is added
    tl.debug_barrier()
    tl.atomic_add(table + label, 1, mask=keep, sem="relaxed")


@triton.jit
def assign_kernel(
    sides, LASTS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    for i in tl.static_range(len(sides)):
        side = sides[i]
        if (program >= 0) & (program < side.groups * side.tiles):
            assign_tile(side, program, DIM, BLOCK_D, BLOCK_M, BLOCK_C, LASTS[i], PRECISION)
        program -= side.groups * side.tiles


@triton.jit
def prefix_kernel(sides, TILES: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    for i in tl.static_range(len(sides)):
        side = sides[i]
        parts = tl.cdiv(side.padded, BLOCK)
        if (program >= 0) & (program < side.groups * parts):
            group = (program // parts).to(tl.int64)
            cols = program % parts * BLOCK + tl.arange(0, BLOCK)
            live = cols < side.padded
            table = side.table + group * side.tiles * side.padded
            before = tl.zeros([BLOCK], tl.int32)
            for first in range(0, side.tiles, TILES):
                rows = first + tl.arange(0, TILES)
                keep = (rows < side.tiles)[:, None] & live[None, :]
                at = table + rows.to(tl.int64)[:, None] * side.padded + cols[None, :]
                # count: [TILES, BLOCK]
                count = tl.load(at, mask=keep, other=0)
                tl.store(at, before[None, :] + tl.cumsum(count, 0) - count, mask=keep)
                before += tl.sum(count, 0)
            tl.store(side.total + group * side.padded + cols, before, mask=live)
        program -= side.groups * parts


@triton.jit
def place_tokens(
    side, group, first, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr, BINS: tl.constexpr
):
    bins = tl.arange(0, BINS)
    # total: [BINS], 0 past the clusters
    total = tl.load(side.total + group * side.padded + bins, mask=bins < side.clusters, other=0)
    start = tl.cumsum(total, 0) - total
    if first == 0:
        at = side.offsets + group * (side.clusters + 1) + bins
        tl.store(at, start, mask=bins <= side.clusters)
    rows = first + tl.arange(0, CHUNK)
    keep = rows < side.tokens
    # slot: [CHUNK]
    slot = tl.load(side.slot + group * side.tokens + rows, mask=keep, other=0)
    label = slot // BLOCK_M
    at = (group * side.tiles + rows // BLOCK_M) * side.padded + label
    before = tl.load(side.table + at, mask=keep, other=0)
    place = tl.gather(start, label, 0) + before + slot % BLOCK_M
    tl.store(side.order + group * side.tokens + place, rows.to(tl.int64), mask=keep)


@triton.jit
def place_kernel(sides, BINS: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr):
    program = tl.program_id(0)
    for i in tl.static_range(len(sides)):
        side = sides[i]
        chunks = tl.cdiv(side.tokens, CHUNK)
        if (program >= 0) & (program < side.groups * chunks):
            group = (program // chunks).to(tl.int64)
            place_tokens(side, group, program % chunks * CHUNK, BLOCK_M, CHUNK, BINS[i])
        program -= side.groups * chunks


@triton.jit
def mean_kernel(
    sides, DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr
):
    program = tl.program_id(0)
    for i in tl.static_range(len(sides)):
        side = sides[i]
        if (program >= 0) & (program < side.groups * side.clusters):
            group = (program // side.clusters).to(tl.int64)
            row = program % side.clusters
            bounds = side.offsets + group * (side.clusters + 1) + row
            start, end = tl.load(bounds), tl.load(bounds + 1)
            # an empty cluster keeps its centroid
            if end > start:
                x_ptr = side.x + group // side.heads * side.stride_xb
                x_ptr += group % side.heads * side.stride_xh
                total = tl.zeros([TILE, BLOCK_D], tl.float32)
                for first in tl.range(start, end, TILE, num_stages=STAGES):
                    at = first + tl.arange(0, TILE)
                    token = tl.load(side.order + group * side.tokens + at, mask=at < end, other=0)
                    # x: [TILE, BLOCK_D]
                    x = load_rows(x_ptr, side.stride_xs, token, at < end, DIM, BLOCK_D)
                    total += x.to(tl.float32)
                mean = tl.sum(total, 0) / (end - start).to(tl.float32)
                settle(side, group, row + tl.arange(0, 1), mean[None, :], DIM, BLOCK_D)
        program -= side.groups * side.clusters
