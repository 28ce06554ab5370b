"""What the attention kernels walk instead of lists of blocks: query tiles, and boxes of keys.

Users: block_sparse.py (tiles of query blocks of any size) and hopper.py. On the device, without a
sync.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels import _tune
from dit_sparse.kernels._tables import boxes_kernel, table_kernel
from dit_sparse.kernels.contract import Cut, per_head
from dit_sparse.kernels.tiling import query_tiles, table_length


def query_table(
    offsets: Tensor | None, kv_count: Tensor, tokens: int, tile: int, size: int = 0
) -> Tensor:
    """Return the query tiles of all heads, longest lists first, and one zero to count with.

    offsets: [B, H, M + 1] int32, or None for blocks of `size`. Returns int32 [B * H * T * 2 + 1]:
    (row, first token) per tile, unused ones last, then the zero. Sorting by comparison is
    quadratic: more than 4,096 blocks a head go unsorted.
    """
    batch, heads, rows = kv_count.shape
    length = rows * -(-size // tile) if offsets is None else table_length(tokens, rows, tile)
    if rows > 4096:
        if offsets is None:
            edges = torch.arange(rows + 1, device=kv_count.device) * size
            offsets = edges.clamp(max=tokens).expand(batch, heads, -1)
        row, first = query_tiles(offsets, tokens, tile)
        unused = row == rows
        tiles = torch.stack((row.where(~unused, 0), first.where(~unused, 2**31 - 1)), -1).int()
        return torch.nn.functional.pad(tiles.flatten(), (0, 1))
    table = torch.empty(batch * heads * length * 2 + 1, dtype=torch.int32, device=kv_count.device)
    uniform = offsets is None
    edges = kv_count if offsets is None else offsets
    table_kernel[(batch * heads * rows,)](
        edges, kv_count, table, *edges.stride()[:2], heads, rows, length,
        batch * heads * length * 2, tokens, TILE=tile, BLOCK=_tune.power_of_2(rows),
        SIZE=size if uniform else 1, IS_UNIFORM=uniform, num_warps=4,
    )  # fmt: skip
    return table


def key_boxes(
    cut: Cut, kv_count: Tensor, kv_index: Tensor, tokens: int, box: int, *, causal: tuple[Cut, int]
    | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the boxes of at most `box` keys that make up each row's listed blocks.

    kv_count, kv_index: int32 [B, H, M] and [B, H, M, C], contiguous. causal: cut and length of the
    query axis; keys that no query of a row sees are left out. Returns how many boxes are whole
    (and seen by all of the row's queries) and how many there are, int32 [B, H, M] each, and int32
    [B, H, M, X]: 256 * first key + number of keys, whole boxes before the others. `tokens` below
    2^23, `box` up to 128.
    """
    batch, heads, rows, capacity = kv_index.shape
    most = capacity * -(-min(cut.size, tokens) // box)
    offsets, q_offsets, q_cut, s_q = kv_count, kv_count, *(causal or (Cut(1), 0))
    if q_cut.offsets is not None:
        q_offsets = per_head(q_cut.offsets.contiguous(), batch, heads)
    if cut.offsets is not None:
        offsets = per_head(cut.offsets.contiguous(), batch, heads)
        # blocks do not overlap: each has at most one short box
        most = min(most, (tokens + (box - 1) * cut.count(tokens)) // box)
    whole, count = torch.empty_like(kv_count), torch.empty_like(kv_count)
    boxes = torch.empty(batch, heads, rows, max(1, most), dtype=torch.int32, device=kv_count.device)
    boxes_kernel[(batch * heads * rows,)](
        offsets, kv_count, kv_index, whole, count, boxes, q_offsets, *offsets.stride()[:2],
        *q_offsets.stride()[:2], heads, rows, capacity, boxes.shape[3], s_q, tokens,
        SIZE=1 if cut.offsets is not None else cut.size, BOX=box,
        Q_SIZE=1 if q_cut.offsets is not None else q_cut.size, IS_UNIFORM=cut.offsets is None,
        IS_Q_UNIFORM=q_cut.offsets is None, IS_CAUSAL=causal is not None, num_warps=1,
    )  # fmt: skip
    return whole, count, boxes
