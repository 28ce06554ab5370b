"""Block-sparse attention on Hopper GPUs: the launcher of the Gluon kernel.

The same formula and arguments as attention.py, which chooses it wherever `why_not` is empty.
Limits: compute capability 9.0, 2-byte numbers, head dims 64 and 128, tensors aligned to 16 bytes,
fewer than 2^23 keys, query blocks of whole tiles of 128 or given by offsets (64 queries on average
or more, the largest above 64), key blocks of 16 keys on average or more, no causal mask beside
columns, no choice by single queries, listed columns in groups of 8 to 64. Each call writes its
lists once more, as boxes: 4 bytes for each box of 16 to 128 keys that a row may list.
The Gluon language is experimental: Triton versions that were not tested run the portable kernel.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dit_sparse.kernels.contract import Columns, Cut, allocate, as_cut, per_head
from dit_sparse.kernels.passes import column_terms
from dit_sparse.kernels.tables import key_boxes, query_table
from dit_sparse.kernels.tiling import mean_size

# versions whose compiler was seen to build the kernel; run and timed: 3.6
TESTED = ("3.6", "3.7", "3.8", "3.9")
TILE = 128  # queries


@dataclass(frozen=True)
class Config:
    """Keys a step, stages of each ring, rings a program, whether a wait that never waits keeps the
    assembler from moving the real one (see _hopper_fold.advance), and the keys of a box, 0 to
    choose by block size."""

    block_n: int
    stages: int
    rings: int
    fence: bool
    box: int = 0


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
    if triton.knobs.runtime.interpret:
        return "Triton's interpreter runs the kernels"
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
        (f"query blocks of at most {q_cut.size} tokens fill half a tile",
         q_cut.offsets is None or q_cut.size > TILE // 2),
        ("query blocks have fewer than 64 tokens on average",
         q_cut.offsets is None or mean_size(q_cut, q.shape[2]) >= TILE // 2),
        ("key blocks have fewer than 16 tokens on average", mean_size(kv_cut, k.shape[2]) >= 16),
        (f"{k.shape[2]} keys are 2^23 or more", k.shape[2] < 2**23),
        ("a causal mask and columns", not causal or columns is None),
        ("queries choose for themselves", row_mask is None),
        ("listed columns come in other groups than of 8 to 64 columns, a power of two",
         columns is None or columns.count is None or columns.group in (8, 16, 32, 64)),
        ("a tensor is not aligned to 16 bytes", all(_aligned(x) for x in tensors)),
    )  # fmt: skip
    return next((text for text, ok in rules if text and not ok), "")


def _aligned(x: Tensor) -> bool:
    strides = [x.stride(i) for i in range(3) if x.shape[i] > 1]
    return (
        x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(s > 0 and s % 8 == 0 for s in strides)
    )


def describe(x: Tensor, rows: int, width: int = 64):
    """Return a tensor map of x [B, H, S, D] with boxes of `rows` tokens x `width` numbers."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    # an axis of one element has any stride, a tensor map only multiples of 16 bytes
    strides = [x.stride(i) if x.shape[i] > 1 else 16 * x.shape[3] for i in range(3)]
    layout = NVMMASharedLayout(width * x.element_size(), 8 * x.element_size(), 4)
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, rows, width], layout)


def describe_rows(terms: Tensor, width: int):
    """Return a tensor map over the stored rows of terms [B, H, M, C], boxes of `width` of a row."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    stored = [n if s else 1 for n, s in zip(terms.shape[:3], terms.stride()[:3], strict=True)]
    rows, length = stored[0] * stored[1] * stored[2], terms.shape[-1]
    flat = terms.as_strided((rows, length), (length, 1))
    return TensorDescriptor.from_tensor(flat, [1, width], NVMMASharedLayout(0, 32, 2))


class Work(NamedTuple):
    """What the producer walks: boxes of up to `box` keys by row (see tables.key_boxes), query tiles
    (see tables.query_table) and their number, past-the-end tokens of query blocks given by offsets.

    is_short: whether a step may have boxes with hidden keys, or fewer boxes than fit.
    """

    whole: Tensor
    count: Tensor
    boxes: Tensor
    table: Tensor
    tiles: int
    ends: Tensor
    box: int
    is_short: bool


def prepare(
    q: Tensor, tokens: int, kv_count: Tensor, kv_index: Tensor, q_cut: Cut, kv_cut: Cut, causal:
    bool, config: Config, least: int = 16,
) -> tuple[Work, Tensor, Tensor]:  # fmt: skip
    """Return the work of one call to `tokens` keys in boxes of at least `least`, and room for out
    and lse."""
    batch, heads, s_q, dim = q.shape
    box = config.box or _box(kv_cut, tokens, config.block_n, least)
    is_short = causal or kv_cut.offsets is not None or tokens % kv_cut.size != 0
    is_short = is_short or box != config.block_n
    lists = kv_count.contiguous(), kv_index.contiguous()
    seen = (q_cut, s_q) if causal else None
    whole, count, boxes = key_boxes(kv_cut, *lists, tokens, box, causal=seen)
    out, lse = allocate(q, dim)
    # equal blocks need no ends
    offsets, ends = None, count
    if q_cut.offsets is not None:
        offsets = per_head(q_cut.offsets.contiguous(), batch, heads).contiguous()
        ends = offsets[..., 1:]
        # tokens outside every block
        out.zero_()
        lse.fill_(float("-inf"))
    table = query_table(offsets, count, s_q, TILE, q_cut.size)
    tiles = (table.numel() - 1) // 2
    return Work(whole, count, boxes, table, tiles, ends, box, is_short), out, lse


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, *, q_blocks: Cut | int,
    kv_blocks: Cut | int, columns: Columns | None = None, tail: Tensor | None = None, row_mask:
    Tensor | None = None, q_order: Tensor | None = None, causal: bool = False, scale: float | None
    = None, config: Config | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the kernel; arguments as in attention.py, `config` overrides the table (benchmarks).

    Raises ValueError with the reason of `why_not`.
    """
    q_cut, kv_cut = as_cut(q_blocks), as_cut(kv_blocks)
    reason = why_not(q, k, v, q_cut, kv_cut, columns, row_mask, causal)
    if reason:
        raise ValueError(f"impl='hopper' cannot run: {reason}")
    from dit_sparse.kernels._hopper import hopper_kernel

    config = config or _TABLE[q.shape[-1]]
    batch, heads, s_q, dim = q.shape
    kv_heads, s_kv, rows = k.shape[1], k.shape[2], kv_count.shape[2]
    work, out, lse = prepare(q, s_kv, kv_count, kv_index, q_cut, kv_cut, causal, config)
    whole, count, boxes, table, tiles, ends, box, is_short = work
    unequal = q_cut.offsets is not None
    ck, cc, ci, terms, strides, t, group = k, count, boxes, lse, (0, 0, 0), k, 0
    ck_desc = cv_desc = terms_desc = tail_desc = None
    if columns is not None:
        ck, group = columns.k, columns.group if columns.count is not None else 0
        terms = column_terms(columns, heads, rows, config.block_n)
        strides = [s // terms.shape[-1] for s in terms.stride()[:3]]
        ck_desc = describe(ck, group or config.block_n)
        cv_desc = describe(columns.v, group or config.block_n)
        if columns.count is not None and columns.index is not None:
            cc, ci = columns.count.contiguous(), columns.index.contiguous()
        else:
            terms_desc = describe_rows(terms, config.block_n)
    if tail is not None:
        t = tail.to(q.dtype).contiguous()
        tail_desc = describe(t, config.block_n)
    order = count if q_order is None else per_head(q_order.contiguous(), batch, heads)
    programs = torch.cuda.get_device_properties(q.device).multi_processor_count
    hopper_kernel[(min(programs, -(-tiles // config.rings)),)](
        describe(q, 64), describe(k, box), describe(v, box), describe(out, 64), ck_desc,
        cv_desc, terms_desc, tail_desc, out, lse, whole, count, boxes, table, table[2 * tiles :],
        ends, terms, cc, ci, heads, heads // kv_heads, heads // ck.shape[1], heads // t.shape[1],
        rows, tiles, tiles // (batch * heads), s_q, s_kv, boxes.shape[3], ck.shape[2],
        ci.shape[-1], scale or dim**-0.5, *strides, *out.stride()[:3], order,
        q, *order.stride()[:2], *q.stride()[:3], DIM=dim,
        Q_SIZE=TILE if unequal else q_cut.size, BLOCK_N=config.block_n, BOX=box,
        COLUMN_GROUP=group, STAGES=config.stages, RINGS=config.rings, IS_Q_UNIFORM=not unequal,
        HAS_SHORT=is_short, HAS_COLUMNS=columns is not None,
        HAS_TAIL=tail is not None, IS_CAUSAL=causal, HAS_FENCE=config.fence,
        HAS_ORDER=q_order is not None, num_warps=4,
        maxnreg=168 if config.rings == 1 else 96,
    )  # fmt: skip
    return out, lse


def _box(cut: Cut, tokens: int, block_n: int, least: int) -> int:
    """Return how many keys to fetch at once: as many as divide a block, at least `least`.

    Of blocks by offsets that many only where nearly all are of one size: a short box hides keys.
    """
    if cut.offsets is not None and 32 * mean_size(cut, tokens) < 31 * cut.size:
        return least
    box = block_n
    while box > least and cut.size % box:
        box //= 2
    return box
