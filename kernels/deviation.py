"""Triton kernels of rectified attention: mean and deviation in one read, and a gated shift.

    mean_j = (1 / n_j) sum_{t in j} x_t,    spread_j = (1 / n_j) sum_{t in j} |x_t - mean_j|
    out_t  = gate_j out_t + shift_j    for t in j, in place

One program per (block, head), arithmetic in float32. Launched by rectify.py, which states shapes
and users. Limits: head dims up to 256; a block above TILE tokens is read twice (from cache).
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import load_rows, store_rows
from dit_sparse.kernels._launch import dense_rows, head_offsets, own_block
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import Cut


@triton.jit
def places(order_ptr, rows, keep, HAS_ORDER: tl.constexpr):
    """Return where arranged tokens `rows` stand."""
    at = rows
    if HAS_ORDER:
        at = tl.load(order_ptr + rows, mask=keep, other=0)
    return at


@triton.jit
def spread_kernel(
    x_ptr, mean_ptr, spread_ptr, offsets_ptr, order_ptr, stride_xb, stride_xh, stride_xs,
    stride_fb, stride_fh, stride_ib, stride_ih, heads, blocks, tokens, DIM: tl.constexpr, BLOCK_D:
    tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, IS_UNIFORM: tl.constexpr, HAS_ORDER:
    tl.constexpr,
):  # fmt: skip
    b, h, block, start, end = own_block(
        offsets_ptr, stride_fb, stride_fh, heads, blocks, tokens, SIZE, IS_UNIFORM
    )
    x_ptr += b * stride_xb + h * stride_xh
    order_ptr += b * stride_ib + h * stride_ih
    count = tl.maximum(end - start, 1).to(tl.float32)
    if SIZE <= TILE:
        rows = start + tl.arange(0, TILE)
        # x: [TILE, BLOCK_D], held in registers for the second sum
        at = places(order_ptr, rows, rows < end, HAS_ORDER)
        x = load_rows(x_ptr, stride_xs, at, rows < end, DIM, BLOCK_D).to(tl.float32)
        mean = tl.sum(x, 0) / count
        far = tl.where((rows < end)[:, None], tl.abs(x - mean[None, :]), 0.0)
        spread = tl.sum(far, 0)
    else:
        total = tl.zeros([BLOCK_D], tl.float32)
        for first in range(start, end, TILE):
            rows = first + tl.arange(0, TILE)
            # x: [TILE, BLOCK_D]
            at = places(order_ptr, rows, rows < end, HAS_ORDER)
            x = load_rows(x_ptr, stride_xs, at, rows < end, DIM, BLOCK_D)
            total += tl.sum(x.to(tl.float32), 0)
        mean = total / count
        spread = tl.zeros([BLOCK_D], tl.float32)
        for first in range(start, end, TILE):
            rows = first + tl.arange(0, TILE)
            # x: [TILE, BLOCK_D]
            at = places(order_ptr, rows, rows < end, HAS_ORDER)
            x = load_rows(x_ptr, stride_xs, at, rows < end, DIM, BLOCK_D).to(tl.float32)
            spread += tl.sum(tl.where((rows < end)[:, None], tl.abs(x - mean[None, :]), 0.0), 0)
    dims = tl.arange(0, BLOCK_D)
    at = block * DIM + dims
    tl.store(mean_ptr + at, mean, mask=dims < DIM)
    tl.store(spread_ptr + at, spread / count, mask=dims < DIM)


@triton.jit
def gate_kernel(
    out_ptr, gate_ptr, shift_ptr, offsets_ptr, order_ptr, stride_ob, stride_oh, stride_os,
    stride_fb, stride_fh, stride_ib, stride_ih, heads, blocks, tokens, DIM: tl.constexpr, BLOCK_D:
    tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, IS_UNIFORM: tl.constexpr, HAS_ORDER:
    tl.constexpr,
):  # fmt: skip
    b, h, block, start, end = own_block(
        offsets_ptr, stride_fb, stride_fh, heads, blocks, tokens, SIZE, IS_UNIFORM
    )
    out_ptr += b * stride_ob + h * stride_oh
    order_ptr += b * stride_ib + h * stride_ih
    dims = tl.arange(0, BLOCK_D)
    gate = tl.load(gate_ptr + block)
    # shift: [BLOCK_D]
    shift = tl.load(shift_ptr + block * DIM + dims, mask=dims < DIM, other=0.0)
    for first in range(start, end, TILE):
        rows = first + tl.arange(0, TILE)
        at = places(order_ptr, rows, rows < end, HAS_ORDER)
        # out: [TILE, BLOCK_D]
        x = load_rows(out_ptr, stride_os, at, rows < end, DIM, BLOCK_D)
        new = x.to(tl.float32) * gate + shift[None, :]
        store_rows(out_ptr, stride_os, at, rows < end, new, DIM, BLOCK_D)


def _ordered(x: Tensor, order: Tensor | None) -> tuple[Tensor, int]:
    """Return an order as [B, H, T] int, x standing in for none, and T or the tokens of x."""
    if order is None:
        return x, x.shape[2]
    order = order if order.stride(2) == 1 else order.contiguous()
    return order.expand(*x.shape[:2], -1), order.shape[2]


def block_spread(x: Tensor, cut: Cut, order: Tensor | None) -> tuple[Tensor, Tensor]:
    """Launch spread_kernel; see rectify.block_spread."""
    x = dense_rows(x)
    batch, heads, _, dim = x.shape
    order_, tokens = _ordered(x, order)
    blocks, offsets = cut.count(tokens), head_offsets(cut, x)
    mean, spread = torch.empty(
        2, batch, heads, blocks, dim, device=x.device, dtype=torch.float32
    ).unbind(0)
    spread_kernel[(batch * heads * blocks,)](
        x, mean, spread, offsets, order_, *x.stride()[:3], *offsets.stride()[:2],
        *order_.stride()[:2], heads, blocks, tokens, DIM=dim, BLOCK_D=power_of_2(dim),
        SIZE=cut.size, TILE=min(128, power_of_2(cut.size)), IS_UNIFORM=cut.offsets is None,
        HAS_ORDER=order is not None, num_warps=8,
    )  # fmt: skip
    return mean, spread


def gate_blocks(out: Tensor, gate: Tensor, shift: Tensor, cut: Cut, order: Tensor | None) -> None:
    """Launch gate_kernel on `out`, in place; see rectify.gate_blocks."""
    batch, heads, _, dim = out.shape
    order_, tokens = _ordered(out, order)
    blocks, offsets = cut.count(tokens), head_offsets(cut, out)
    gate, shift = gate.float().contiguous(), shift.float().contiguous()
    gate_kernel[(batch * heads * blocks,)](
        out, gate, shift, offsets, order_, *out.stride()[:3], *offsets.stride()[:2],
        *order_.stride()[:2], heads, blocks, tokens, DIM=dim, BLOCK_D=power_of_2(dim),
        SIZE=cut.size, TILE=min(64, power_of_2(cut.size)), IS_UNIFORM=cut.offsets is None,
        HAS_ORDER=order is not None, num_warps=4,
    )  # fmt: skip
