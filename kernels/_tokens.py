"""Triton kernel of the one pass over tokens: order, restore and pool several tensors at once.

One program per (block, head) of every tensor; a block is read once for its tokens in order and for
its sum. Launched by permute.py and pool.py, which state formulas, shapes and users. Limits: head
dims up to 256.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import block_range, load_rows
from dit_sparse.kernels._launch import dense_rows, head_offsets
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import Cut


class Job(NamedTuple):
    """One tensor of a pass; out: [B, H, T, D] for its tokens; mean: [B, H, N, D] for its blocks."""

    x: Tensor
    order: Tensor | None
    cut: Cut
    out: Tensor | None
    mean: Tensor | None
    is_inverse: bool = False
    is_sum: bool = False


@triton.jit
def token_block(
    program, x_ptr, order_ptr, out_ptr, mean_ptr, offsets_ptr, stride_xb, stride_xh, stride_xs,
    stride_ib, stride_ih, stride_ob, stride_oh, stride_os, stride_fb, stride_fh, heads, blocks,
    tokens, DIM: tl.constexpr, BLOCK_D: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr,
    IS_UNIFORM: tl.constexpr, HAS_ORDER: tl.constexpr, IS_INVERSE: tl.constexpr, WRITE_TOKENS:
    tl.constexpr, WRITE_MEAN: tl.constexpr, IS_SUM: tl.constexpr,
):  # fmt: skip
    """Order and pool one block of one tensor."""
    block = program % blocks
    bh = program // blocks
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    start, end = block_range(
        block, offsets_ptr + b * stride_fb + h * stride_fh, tokens, SIZE, IS_UNIFORM, True
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
        at = mean_ptr + (bh.to(tl.int64) * blocks + block) * DIM + dims
        tl.store(at, total.to(mean_ptr.dtype.element_ty), mask=dims < DIM)


@triton.jit
def token_kernel(
    tensors, strides, sizes, ends, SHAPES: tl.constexpr, FLAGS: tl.constexpr, JOBS: tl.constexpr
):
    """Do one block of the tensor that this program belongs to; ends: programs up to each one."""
    program = tl.program_id(0)
    for i in tl.static_range(JOBS):
        begin = 0 if i == 0 else ends[i - 1]
        if (program >= begin) & (program < ends[i]):
            token_block(
                program - begin, tensors[5 * i], tensors[5 * i + 1], tensors[5 * i + 2],
                tensors[5 * i + 3], tensors[5 * i + 4], strides[10 * i], strides[10 * i + 1],
                strides[10 * i + 2], strides[10 * i + 3], strides[10 * i + 4], strides[10 * i + 5],
                strides[10 * i + 6], strides[10 * i + 7], strides[10 * i + 8], strides[10 * i + 9],
                sizes[3 * i], sizes[3 * i + 1], sizes[3 * i + 2], SHAPES[4 * i], SHAPES[4 * i + 1],
                SHAPES[4 * i + 2], SHAPES[4 * i + 3], FLAGS[6 * i], FLAGS[6 * i + 1],
                FLAGS[6 * i + 2], FLAGS[6 * i + 3], FLAGS[6 * i + 4], FLAGS[6 * i + 5],
            )  # fmt: skip


def token_pass(jobs: Sequence[Job]) -> None:
    """Fill the outputs of all jobs by one launch."""
    tensors, strides, sizes, programs, shapes, flags = [], [], [], [], [], []
    for job in jobs:
        x, cut, order = dense_rows(job.x), job.cut, job.order
        batch, heads, tokens, dim = x.shape
        order_ = x
        if order is not None:
            tokens = order.shape[2]
            order_ = order if order.stride(2) == 1 else order.contiguous()
            order_ = order_.expand(batch, heads, tokens)
        out = x if job.out is None else job.out
        blocks, offsets = cut.count(tokens), head_offsets(cut, x)
        tensors += [x, order_, out, x if job.mean is None else job.mean, offsets]
        strides += [*x.stride()[:3], *order_.stride()[:2], *out.stride()[:3], *offsets.stride()[:2]]
        sizes += [heads, blocks, tokens]
        programs.append(batch * heads * blocks)
        uniform = cut.offsets is None
        tile = min(64, power_of_2(cut.size))
        # the bound of unequal blocks' sizes stands in no program, so that it may change
        shapes += [dim, power_of_2(dim), cut.size if uniform else 1, tile]
        flags += [
            uniform, order is not None, job.is_inverse, job.out is not None, job.mean is not None,
            job.is_sum,
        ]  # fmt: skip
    ends = tuple(accumulate(programs))
    token_kernel[(ends[-1],)](
        tuple(tensors), tuple(strides), tuple(sizes), ends, SHAPES=tuple(shapes),
        FLAGS=tuple(flags), JOBS=len(jobs), num_warps=4,
    )  # fmt: skip


def new_mean(x: Tensor, cut: Cut, tokens: int, dtype: torch.dtype) -> Tensor:
    """Return memory for the means [B, H, N, D] of x [B, H, S, D] on an axis of `tokens`."""
    shape = *x.shape[:2], cut.count(tokens), x.shape[3]
    return torch.empty(shape, device=x.device, dtype=dtype)
