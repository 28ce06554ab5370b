"""Cut query blocks of any size into tiles of equal size (plain torch, no wait for the device)."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Cut


def table_length(tokens: int, rows: int, tile: int) -> int:
    """Return the most tiles that `rows` disjoint blocks of an axis of `tokens` can need."""
    return max(1, (tokens + rows * (tile - 1)) // tile)


def mean_size(cut: Cut, tokens: int) -> int:
    """Return the tokens of a block: exact for equal blocks, else the mean of an even spread."""
    if cut.offsets is None:
        return min(cut.size, tokens)
    return max(1, min(cut.size, -(-tokens // max(1, cut.count(tokens)))))


def query_tiles(offsets: Tensor, tokens: int, tile: int) -> tuple[Tensor, Tensor]:
    """Return (row, first token) of every tile, int64 [B|1, H|1, T] with T = `table_length`.

    offsets: [B|1, H|1, M + 1] int32. Tiles beyond those in use have row M and first token 0.
    """
    bounds = offsets.long()
    rows = bounds.shape[-1] - 1
    count = (bounds.diff(dim=-1).clamp(min=0) + tile - 1) // tile
    ends = count.cumsum(-1)
    step = torch.arange(table_length(tokens, rows, tile), device=offsets.device)
    step = step.expand(*ends.shape[:2], -1).contiguous()
    row = torch.searchsorted(ends, step, right=True)
    safe = row.clamp(max=rows - 1)
    inner = step - (ends - count).gather(-1, safe)
    first = bounds.gather(-1, safe) + inner * tile
    return row, first.where(row < rows, 0)
