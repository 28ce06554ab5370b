"""What the one-pass kernels share: a program's own block, and tensors as launchers pass them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import block_range
from dit_sparse.kernels.contract import Cut, per_head


@triton.jit
def own_block(
    offsets_ptr, stride_fb, stride_fh, heads, blocks, tokens, SIZE: tl.constexpr, IS_UNIFORM:
    tl.constexpr,
):  # fmt: skip
    """Return (batch, head, number in [B, H, N], first, past-the-end token) of a program's block."""
    block = tl.program_id(0) % blocks
    bh = tl.program_id(0) // blocks
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    start, end = block_range(
        block, offsets_ptr + b * stride_fb + h * stride_fh, tokens, SIZE, IS_UNIFORM, True
    )
    return b, h, bh.to(tl.int64) * blocks + block, start, end


def dense_rows(x: Tensor) -> Tensor:
    """Return x with neighbouring elements of its last axis side by side, copied if need be."""
    return x if x.stride(-1) == 1 else x.contiguous()


def head_offsets(cut: Cut, x: Tensor) -> Tensor:
    """Return the offsets [B, H, N + 1] for x [B, H, ...]; x stands in where blocks are equal."""
    return x if cut.offsets is None else per_head(cut.offsets.contiguous(), *x.shape[:2])


def precision() -> str:
    """Return how products of float32 are taken: to about its own precision."""
    return "tf32x3" if torch.version.hip is None else "ieee"
