"""Triton kernels that choose and list blocks: the best of a row, those above an edge, any mask.

One program per row, which it holds in registers (masks: in parts); a choice writes the row's level
and its list in one launch. Launched by lists.py, which states shapes and users. Limits: rows of
16,384 scores.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import ordered, unordered
from dit_sparse.kernels._tune import power_of_2


@triton.jit
def list_row(index_ptr, keep, at, before, capacity):
    """Write the ids `at` [BLOCK] of kept entries behind `before` others; return how many there are
    now."""
    place = before + tl.cumsum(keep, 0) - 1
    tl.store(index_ptr + place, at, mask=(keep != 0) & (place < capacity))
    return before + tl.sum(keep, 0)


@triton.jit
def end_row(index_ptr, count_ptr, count, capacity, BLOCK: tl.constexpr):
    """Write the length of a list, and 0 past it."""
    count = tl.minimum(count, capacity)
    tl.store(count_ptr, count)
    for base in range(count, capacity, BLOCK):
        rest = base + tl.arange(0, BLOCK)
        tl.store(index_ptr + rest, rest * 0, mask=rest < capacity)


@triton.jit
def pack_kernel(
    mask_ptr, count_ptr, index_ptr, n, capacity, level, BLOCK: tl.constexpr, HAS_LEVEL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    index_ptr += row * capacity
    count = tl.zeros([], tl.int32)
    for base in range(0, n, BLOCK):
        at = base + tl.arange(0, BLOCK)
        # mask: [BLOCK] int8
        entry = tl.load(mask_ptr + row * n + at, mask=at < n, other=0)
        kept = (entry == level) & (at < n) if HAS_LEVEL else entry != 0
        count = list_row(index_ptr, kept.to(tl.int32), at, count, capacity)
    end_row(index_ptr, count_ptr + row, count, capacity, BLOCK)


@triton.jit
def top_kernel(
    score_ptr, level_ptr, count_ptr, index_ptr, n, k, BLOCK: tl.constexpr, HAS_LISTS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    # score: [BLOCK] float32
    score = tl.load(score_ptr + row * n + at, mask=at < n, other=0.0)
    # 0 is below every score
    key = tl.where(at < n, ordered(score), tl.zeros([BLOCK], tl.uint32))
    # the k-th largest key lies in [edge, high]; `found` keys are not below `edge`
    edge = tl.min(tl.where(at < n, key, tl.full([BLOCK], 0xFFFFFFFF, tl.uint32)), 0)
    high = tl.max(key, 0)
    found = tl.zeros([], tl.int32) + n
    halves = tl.zeros([], tl.int32)
    while (edge < high) & (found != k):
        middle = high - ((high - edge) >> 1)
        # keys are spread as the logarithms of scores: first by half of what these span
        near = ordered(0.5 * unordered(edge) + 0.5 * unordered(high))
        middle = tl.where((halves < 4) & (near > edge) & (near <= high), near, middle)
        halves += 1
        count = tl.sum((key >= middle).to(tl.int32), 0)
        high = tl.where(count >= k, high, middle - 1)
        edge = tl.where(count >= k, middle, edge)
        found = tl.where(count >= k, count, found)
    keep = (key >= edge).to(tl.int32)
    if found != k:
        # equal scores: the first ones
        above = (key > edge).to(tl.int32)
        tie = keep - above
        first = tl.cumsum(tie, 0) <= k - tl.sum(above, 0)
        keep = above | (tie & first.to(tl.int32))
    tl.store(level_ptr + row * n + at, keep.to(tl.int8), mask=at < n)
    if HAS_LISTS:
        list_row(index_ptr + row * k, keep, at, 0, k)
        tl.store(count_ptr + row, k)


@triton.jit
def edge_kernel(score_ptr, edge_ptr, level_ptr, count_ptr, index_ptr, rows, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    # score: [BLOCK] float32
    score = tl.load(score_ptr + row * n + at, mask=at < n, other=float("-inf"))
    worse = (score < tl.load(edge_ptr + row // rows)) & (score < tl.max(score, 0))
    # a row with NaN keeps all, so that it shows
    worse = worse & (tl.max((score != score).to(tl.int32), 0) == 0)
    keep = tl.where(worse | (at >= n), 0, 1)
    tl.store(level_ptr + row * n + at, keep.to(tl.int8), mask=at < n)
    count = list_row(index_ptr + row * n, keep, at, 0, n)
    end_row(index_ptr + row * n, count_ptr + row, count, n, BLOCK)


def _lists(like: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Return memory for the lists of a mask or of scores [B, H, M, N]."""
    count = torch.empty(like.shape[:-1], device=like.device, dtype=torch.int32)
    return count, count.new_empty(*count.shape, capacity)


def pack_lists(block_mask: Tensor, capacity: int, level: int | None) -> tuple[Tensor, Tensor]:
    """Launch pack_kernel; see lists.pack_lists."""
    mask, n = block_mask.contiguous().view(torch.int8), block_mask.shape[-1]
    count, index = _lists(mask, capacity)
    pack_kernel[(count.numel(),)](
        mask, count, index, n, capacity, level or 0, BLOCK=min(1024, power_of_2(n)),
        HAS_LEVEL=level is not None, num_warps=4,
    )  # fmt: skip
    return count, index


def top_lists(score: Tensor, k: int, lists: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Launch top_kernel; see lists.top_lists. Without `lists` these are left unwritten."""
    score, n = score.contiguous(), score.shape[-1]
    level = torch.empty(score.shape, device=score.device, dtype=torch.int8)
    count, index = _lists(score, k if lists else 0)
    block = power_of_2(n)
    # few warps, for each halving sums over the row, but about 16 scores a thread (one H200, lists
    # of 47,280 rows of 1,182: 1, 2, 4, 8 warps 1.08, 1.03, .53, .67 ms)
    top_kernel[(count.numel(),)](
        score, level, count, index, n, k, BLOCK=block, HAS_LISTS=lists,
        num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return level, count, index


def edge_lists(score: Tensor, edge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Launch edge_kernel; see lists.edge_lists."""
    score, rows, n = score.contiguous(), *score.shape[-2:]
    level = torch.empty(score.shape, device=score.device, dtype=torch.int8)
    count, index = _lists(score, n)
    block = power_of_2(n)
    edge_kernel[(count.numel(),)](
        score, edge.contiguous(), level, count, index, rows, n, BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return level, count, index
