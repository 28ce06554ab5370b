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
def boxes_kernel(
    offsets_ptr, count_ptr, index_ptr, whole_ptr, all_ptr, boxes_ptr, stride_fb, stride_fh, heads,
    rows, capacity, most, tokens, SIZE: tl.constexpr, BOX: tl.constexpr, IS_UNIFORM: tl.constexpr,
):  # fmt: skip
    """Cut the listed blocks of one row into boxes, all whole ones before the short ones."""
    at = tl.program_id(0).to(tl.int64)
    bh = at // rows
    offsets_ptr += bh // heads * stride_fb + bh % heads * stride_fh
    index_ptr += at * capacity
    boxes_ptr += at * most
    count = tl.minimum(tl.load(count_ptr + at), capacity)
    step = tl.arange(0, 128)
    whole = count * 0
    for base in range(0, count, 128):
        live = base + step < count
        block = tl.load(index_ptr + base + step, mask=live, other=0)
        start, end = block_range(block, offsets_ptr, tokens, SIZE, IS_UNIFORM, live)
        whole += tl.sum((end - start) // BOX, 0)
    tl.store(whole_ptr + at, whole)
    place = count * 0
    short = whole
    for base in range(0, count, 128):
        live = base + step < count
        block = tl.load(index_ptr + base + step, mask=live, other=0)
        start, end = block_range(block, offsets_ptr, tokens, SIZE, IS_UNIFORM, live)
        boxes = (end - start) // BOX
        first = place + tl.cumsum(boxes, 0) - boxes
        for i in range(0, tl.max(boxes, 0)):
            tl.store(boxes_ptr + first + i, (start + i * BOX) * 256 + BOX, mask=i < boxes)
        rest = (end - start) % BOX
        has_rest = (rest > 0).to(tl.int32)
        last = short + tl.cumsum(has_rest, 0) - has_rest
        tl.store(boxes_ptr + last, (start + boxes * BOX) * 256 + rest, mask=rest > 0)
        place += tl.sum(boxes, 0)
        short += tl.sum(has_rest, 0)
    tl.store(all_ptr + at, short)
