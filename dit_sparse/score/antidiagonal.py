"""Scores of block pairs from sums along antidiagonals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.arranged import arranged
from dit_sparse.core import QKV, Blocks, Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.scores import products

# numbers of the largest temporary map of cells
SCRATCH = 1 << 26


@dataclass(frozen=True)
class Antidiagonal:
    """Softmax mass of a block pair, by a map with one number per cell of tokens: [B, H, M, N].

        A_ab = scale / stride * sum_r q[a stride + stride - 1 - r] . k[b stride + r]
        score_ij = sum_{a in i, b in j} softmax_b(A_ab)

    Every line of a cell, vertical or slash, meets its antidiagonal; an even stride meets slashes of
    odd distance alone. With stride 1 the score is the exact mass. Causal: cell b is seen when its
    first key comes no later than the cell's last query. Blocks must be equal, in multiples of
    the stride. float32 or wider. Used by XAttention, PBS-Attn+.
    """

    stride: int = 8

    def __post_init__(self) -> None:
        if type(self.stride) is not int or self.stride < 1:
            raise ArgumentError(f"stride={self.stride!r} must be a count of tokens, at least 1")

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        moved = arranged(x, layout, ctx)
        q, k = moved.q, moved.k
        (rows, row_cells), (cols, col_cells) = (self._cells(b) for b in layout)
        # the tokens of a cell are one long vector, those of queries backwards
        queries = self._long(q[:, :, : layout.q.video_tokens], rows * row_cells).flip(3).flatten(3)
        keys = self._long(k[:, :, : layout.kv.video_tokens], cols * col_cells).flatten(3)
        scale = (q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale) / self.stride
        device = q.device
        first_key = torch.arange(cols * col_cells, device=device) * self.stride
        stop = torch.full_like(first_key[:1], layout.kv.video_tokens)
        shift = layout.kv.length - layout.q.length
        step = max(1, SCRATCH // (q.shape[0] * q.shape[1] * len(first_key) * row_cells))
        parts = []
        for at in range(0, rows, step):
            cells = slice(at * row_cells, min(at + step, rows) * row_cells)
            logits = products(queries[:, :, cells], keys) * scale
            last = torch.arange(cells.start, cells.stop, device=device) * self.stride
            real = last < layout.q.video_tokens
            seen = stop
            if ctx.causal:
                # the last real query of a cell
                last = (last + self.stride).clamp(max=layout.q.length) + shift
                seen = torch.minimum(stop, last)
            hidden = first_key >= seen[:, None]
            p = logits.masked_fill(hidden, float("-inf")).softmax(-1)
            p = p.masked_fill(~real[:, None], 0)
            parts.append(p.unflatten(3, (cols, col_cells)).sum(4))
        return torch.cat(parts, 2).unflatten(2, (rows, row_cells)).sum(3)

    def _cells(self, blocks: Blocks) -> tuple[int, int]:
        """Return the number of video blocks and of cells in each."""
        if blocks.video > 1 and blocks.size % self.stride:
            raise ArgumentError(f"block={blocks.size} must be a multiple of stride={self.stride}")
        return blocks.video, -(-blocks.size // self.stride)

    def _long(self, x: Tensor, cells: int) -> Tensor:
        """Return the tokens of each cell side by side, [B, H, cells, stride, D], 0 for missing."""
        missing = cells * self.stride - x.shape[2]
        return F.pad(x, (0, 0, 0, missing)).unflatten(2, (cells, self.stride))
