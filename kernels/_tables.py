"""Triton kernels that turn lists of blocks into what the attention kernels walk.

Launched by tables.py, which states shapes.
"""

import triton
import triton.language as tl

from dit_sparse.kernels._jit import block_range


@triton.jit
def table_kernel(
    offsets_ptr, count_ptr, table_ptr, stride_fb, stride_fh, heads, rows, length, zero_at, tokens,
    TILE: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, IS_UNIFORM: tl.constexpr,
):  # fmt: skip
    """Write the tiles of one query block behind those of all blocks with longer lists.

    table: [B, H, length, 2] int32, (row, first token); unused entries start past every block.
    """
    row = tl.program_id(0) % rows
    bh = tl.program_id(0) // rows
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    if tl.program_id(0) == 0:
        tl.store(table_ptr + zero_at, 0)
    offsets_ptr += b * stride_fb + h * stride_fh
    count_ptr += bh.to(tl.int64) * rows
    table_ptr += bh.to(tl.int64) * length * 2
    at = tl.arange(0, BLOCK)
    # start, end, work: [BLOCK] of all blocks of this head
    start, end = block_range(at, offsets_ptr, tokens, SIZE, IS_UNIFORM, at < rows)
    work = tl.load(count_ptr + at, mask=at < rows, other=-1)
    tiles = tl.maximum(end - start + TILE - 1, 0) // TILE
    mine = tl.load(count_ptr + row)
    before = (work > mine) | ((work == mine) & (at < row))
    place = tl.sum(tl.where(before, tiles, 0), 0)
    own = tl.sum(tl.where(at == row, tiles, 0), 0)
    first = tl.sum(tl.where(at == row, start, 0), 0)
    for base in range(0, own, 32):
        i = base + tl.arange(0, 32)
        keep = (i < own) & (place + i < length)
        tl.store(table_ptr + (place + i) * 2, i * 0 + row, mask=keep)
        tl.store(table_ptr + (place + i) * 2 + 1, first + i * TILE, mask=keep)
    for i in range(tl.sum(tiles, 0) + row, length, rows):
        tl.store(table_ptr + i * 2, 0)
        tl.store(table_ptr + i * 2 + 1, 0x7FFFFFFF)


@triton.jit
def listed_boxes(
    index_ptr, base, count, offsets_ptr, first_seen, last_seen, tokens, SIZE: tl.constexpr, BOX:
    tl.constexpr, IS_UNIFORM: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """Return first key, keys, whole boxes and other boxes of 128 listed blocks; hidden keys are
    left out, and a box that not every query of the row sees whole is no whole one."""
    at = base + tl.arange(0, 128)
    block = tl.load(index_ptr + at, mask=at < count, other=0)
    start, end = block_range(block, offsets_ptr, tokens, SIZE, IS_UNIFORM, at < count)
    if IS_CAUSAL:
        end = tl.maximum(tl.minimum(end, last_seen + 1), start)
    size = end - start
    whole = size // BOX
    if IS_CAUSAL:
        whole = tl.minimum(whole, tl.maximum(first_seen + 1 - start, 0) // BOX)
    return start, size, whole, (size + BOX - 1) // BOX - whole


@triton.jit
def boxes_kernel(
    offsets_ptr, count_ptr, index_ptr, whole_ptr, all_ptr, boxes_ptr, q_offsets_ptr, stride_fb,
    stride_fh, stride_qb, stride_qh, heads, rows, capacity, most, s_q, tokens, SIZE: tl.constexpr,
    BOX: tl.constexpr, Q_SIZE: tl.constexpr, IS_UNIFORM: tl.constexpr, IS_Q_UNIFORM: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """Cut the listed blocks of one row into boxes, the whole ones before the others."""
    at = tl.program_id(0).to(tl.int64)
    b = at // rows // heads
    h = at // rows % heads
    offsets_ptr += b * stride_fb + h * stride_fh
    index_ptr += at * capacity
    boxes_ptr += at * most
    count = tl.minimum(tl.load(count_ptr + at), capacity)
    first_seen = tokens
    last_seen = tokens
    if IS_CAUSAL:
        q_offsets_ptr += b * stride_qb + h * stride_qh
        row = (at % rows).to(tl.int32)
        q_start, q_end = block_range(row, q_offsets_ptr, s_q, Q_SIZE, IS_Q_UNIFORM, True)
        first_seen = q_start + (tokens - s_q)
        last_seen = q_end - 1 + (tokens - s_q)
    total = count * 0
    for base in range(0, count, 128):
        start, size, whole, rest = listed_boxes(
            index_ptr, base, count, offsets_ptr, first_seen, last_seen, tokens, SIZE, BOX,
            IS_UNIFORM, IS_CAUSAL,
        )  # fmt: skip
        total += tl.sum(whole, 0)
    tl.store(whole_ptr + at, total)
    place = count * 0
    for base in range(0, count, 128):
        start, size, whole, rest = listed_boxes(
            index_ptr, base, count, offsets_ptr, first_seen, last_seen, tokens, SIZE, BOX,
            IS_UNIFORM, IS_CAUSAL,
        )  # fmt: skip
        first = place + tl.cumsum(whole, 0) - whole
        for i in range(0, tl.max(whole, 0)):
            tl.store(boxes_ptr + first + i, (start + i * BOX) * 256 + BOX, mask=i < whole)
        first = total + tl.cumsum(rest, 0) - rest
        for i in range(0, tl.max(rest, 0)):
            done = (whole + i) * BOX
            box = (start + done) * 256 + tl.minimum(size - done, BOX)
            tl.store(boxes_ptr + first + i, box, mask=i < rest)
        place += tl.sum(whole, 0)
        total += tl.sum(rest, 0)
    tl.store(all_ptr + at, total)
