"""Block-sparse attention on Hopper GPUs: the launcher of the Gluon kernel.

The same formula and arguments as attention.py. Users: every method whose blocks fit, chosen by
block_sparse.py. Limits (`why_not` names them): compute capability 9.0, 2-byte numbers, head dims
64 and 128, query blocks of whole tiles of 128 or of any size, equal key blocks of whole boxes of
64, no causal mask, no choice by single queries, no listed columns.
The Gluon language is experimental: Triton versions that were not tested run the portable kernel.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from dit_sparse.kernels.contract import Columns, Cut, allocate, as_cut, per_head
from dit_sparse.kernels.passes import column_terms

# versions whose compiler was seen to build the kernel; run and timed: 3.6
TESTED = ("3.6", "3.7", "3.8", "3.9")
TILE = 128  # queries


@dataclass(frozen=True)
class Config:
    """Keys a step, stages of each ring, rings a program, and whether a wait that never waits keeps
    the assembler from moving the real one (see _hopper_fold.advance)."""

    block_n: int
    stages: int
    rings: int
    fence: bool


# head dim -> configuration; measured on one H200, Triton 3.6, at densities .5 / .25 / .1 / .05:
# d 128 with fence 645 / 641 / 611 / 578, without 630 / 614 / 610 / 561 TFLOP/s; d 64, blocks of
# 128, two rings 481 / 458 / 441 / 408, with fence 457 / 451 / 424 / 406, one ring of 128 keys and
# four stages 467 / 431 / 407 / 375
_TABLE = {128: Config(128, 2, 1, True), 64: Config(64, 4, 2, False)}


@functools.cache
def _device_why_not(device: torch.device) -> str:
    if device.type != "cuda":
        return f"tensors are on {device.type}"
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) != (9, 0):
        return f"{torch.cuda.get_device_name(device)} is not of compute capability 9.0"
    version = ".".join(triton.__version__.split(".")[:2])
    if version not in TESTED:
        return f"triton {triton.__version__} was not tested (tested: {', '.join(TESTED)})"
    try:
        importlib.import_module("dit_sparse.kernels._hopper")
    except Exception as error:
        return f"Gluon cannot be imported ({type(error).__name__}: {error})"
    return ""


def why_not(
    q: Tensor, k: Tensor, v: Tensor, q_cut: Cut, kv_cut: Cut, columns: Columns | None = None,
    row_mask: Tensor | None = None, causal: bool = False,
) -> str:  # fmt: skip
    """Return why these arguments need the portable kernel, "" where this one takes them."""
    tensors = [q, k, v] if columns is None else [q, k, v, columns.k, columns.v]
    rules = (
        (_device_why_not(q.device), False),
        (f"dtype {q.dtype} has not 2 bytes", q.element_size() == 2),
        (f"head dims {q.shape[-1]} and {v.shape[-1]} are not both 64 or both 128",
         q.shape[-1] == v.shape[-1] and q.shape[-1] in (64, 128)),
        (f"query blocks of {q_cut.size} are not whole tiles of {TILE}",
         q_cut.offsets is not None or q_cut.size % TILE == 0),
        ("key blocks differ in size", kv_cut.offsets is None),
        (f"key blocks of {kv_cut.size} are not whole boxes of 64", kv_cut.size % 64 == 0),
        ("a causal mask", not causal),
        ("queries choose for themselves", row_mask is None),
        ("columns are listed", columns is None or columns.count is None),
        ("a tensor is not aligned to 16 bytes", all(_aligned(x) for x in tensors)),
    )  # fmt: skip
    return next((text for text, ok in rules if text and not ok), "")


def _aligned(x: Tensor) -> bool:
    strides = [x.stride(i) for i in range(3) if x.shape[i] > 1]
    return (
        x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(s > 0 and s % 8 == 0 for s in strides)
    )


def _describe(x: Tensor, rows: int):
    """Return a tensor map of x [B, H, S, D] with boxes of `rows` tokens x 64 numbers."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    # an axis of one element has any stride, a tensor map only multiples of 16 bytes
    strides = [x.stride(i) if x.shape[i] > 1 else 8 * x.shape[3] for i in range(3)]
    layout = NVMMASharedLayout(128, 16, 4)
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, rows, 64], layout)


def _describe_terms(terms: Tensor, width: int):
    """Return a tensor map over the rows of terms [B, H, M, C] that are stored, and the strides of
    b, h and m in such rows."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    length = terms.shape[-1]
    stored = [n if s else 1 for n, s in zip(terms.shape[:3], terms.stride()[:3], strict=True)]
    rows = terms.as_strided((stored[0] * stored[1] * stored[2], length), (length, 1))
    layout = NVMMASharedLayout(0, 32, 2)
    strides = [s // length for s in terms.stride()[:3]]
    return TensorDescriptor.from_tensor(rows, [1, width], layout), strides


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, *, q_blocks: Cut | int,
    kv_blocks: Cut | int, columns: Columns | None = None, tail: Tensor | None = None, row_mask:
    Tensor | None = None, causal: bool = False, scale: float | None = None, config: Config | None =
    None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the kernel; arguments as in attention.py, `config` overrides the table (benchmarks).

    Raises ValueError with the reason of `why_not`.
    """
    q_cut, kv_cut = as_cut(q_blocks), as_cut(kv_blocks)
    reason = why_not(q, k, v, q_cut, kv_cut, columns, row_mask, causal)
    if reason:
        raise ValueError(f"impl='hopper' cannot run: {reason}")
    from dit_sparse.kernels._hopper import hopper_kernel
    from dit_sparse.kernels.block_sparse import query_table

    batch, heads, s_q, dim = q.shape
    kv_heads, s_kv = k.shape[1], k.shape[2]
    rows, size = kv_count.shape[2], kv_cut.size
    config = config or _TABLE[dim]
    block_n, rings = config.block_n, config.rings
    box = block_n if size % block_n == 0 else 64
    kv_count, kv_index = kv_count.contiguous(), kv_index.contiguous()
    out, lse = allocate(q, dim)
    uniform = q_cut.offsets is None
    if uniform:
        offsets = None
        ends = kv_count
    else:
        offsets = per_head(q_cut.offsets.contiguous(), batch, heads).contiguous()
        ends = offsets[..., 1:]
        # tokens outside every block
        out.zero_()
        lse.fill_(float("-inf"))
    table = query_table(offsets, kv_count, s_q, TILE, q_cut.size)
    per = (table.numel() - 1) // (2 * batch * heads)
    tiles = batch * heads * per
    k_desc, v_desc = _describe(k, box), _describe(v, box)
    ck, strides, t = k, (0, 0, 0), k
    ck_desc = cv_desc = terms_desc = tail_desc = None
    if columns is not None:
        ck = columns.k
        ck_desc, cv_desc = _describe(ck, block_n), _describe(columns.v, block_n)
        terms_desc, strides = _describe_terms(column_terms(columns, heads, rows, block_n), block_n)
    if tail is not None:
        t = tail.to(q.dtype).contiguous()
        tail_desc = _describe(t, block_n)
    programs = torch.cuda.get_device_properties(q.device).multi_processor_count
    hopper_kernel[(min(programs, -(-tiles // rings)),)](
        _describe(q, 64), k_desc, v_desc, ck_desc, cv_desc, terms_desc, tail_desc,
        _describe(out, 64), out, lse, kv_count, kv_index, table, table[2 * tiles :], ends, heads,
        heads // kv_heads, heads // ck.shape[1], heads // t.shape[1], rows, tiles, per, s_q, s_kv,
        kv_cut.count(s_kv), kv_index.shape[-1], ck.shape[2], scale or dim**-0.5, *strides,
        *out.stride()[:3], DIM=dim, Q_SIZE=q_cut.size if uniform else TILE, SIZE=size,
        BLOCK_N=block_n, BOX=box, STAGES=config.stages, RINGS=rings, IS_Q_UNIFORM=uniform,
        IS_RAGGED=s_kv % size != 0, HAS_SHORT=s_kv % size != 0 or size % block_n != 0,
        HAS_COLUMNS=columns is not None, HAS_TAIL=tail is not None, FENCE=config.fence, num_warps=4,
        maxnreg=168 if rings == 1 else 96,
    )  # fmt: skip
    return out, lse
