"""Scores of single keys from the lines that the last queries see: columns, slashes, blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.constants import constant
from dit_sparse.core import QKV, Context, Known, Layout, causal_only, layer_row
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.pool import pool_blocks
from dit_sparse.kernels.scores import products

SHAPES = {"A": 2, "V": 2, "B": 1}
NEVER = float("-inf")


@lru_cache(maxsize=1024)
def shape_of(text: str) -> tuple[str, tuple[int, ...]]:
    """Read a head's shape: ("V", (1000, 6096)) from "V 1000 6096"; raise where it is none."""
    letter, *counts = text.split() if isinstance(text, str) and text.split() else ("",)
    good = SHAPES.get(letter) == len(counts) and all(c.isdecimal() and int(c) for c in counts)
    if not good:
        raise ArgumentError(
            f"heads: {text!r} must be 'A first local' (keys), 'V columns slashes' or 'B blocks', "
            "e.g. 'V 1000 6096'"
        )
    return letter, tuple(map(int, counts))


@dataclass(frozen=True)
class Lines:
    """Minus a key's rank in its head's list, as a share of the head's budget: [B, H, M, S].

    A score of at least -1 is within the budget. Query blocks hold the layout's `size` queries, key
    blocks single tokens; e is the position behind a query block (as if it were full).
    A: the first `first` keys, and those less than `local` before the block's first query.
    V: columns j ranked by v_j, slashes d by s_d; a slash covers the keys [e - size - d, e - d):
        v_j = sum_r p_rj,   s_d = sum_r p_r,(pos_r - d),   p = softmax of the last `last` queries
    the first `sink` columns and the slashes below `local` come before all others.
    B: blocks of `size` keys, ranked in each row by mean q . mean k.
    heads: one such shape per head, of each layer; empty: `shape` for all. Where a call comes in
    parts (ctx.cache["parts"], the last one first), the lines are those of the last part.
    Used by MInference.
    """

    shape: str = "V 1000 6096"
    heads: tuple[tuple[str, ...], ...] = ()
    last: int = 64
    sink: int = 30
    local: int = 100

    def __post_init__(self) -> None:
        shape_of(self.shape)
        for row in self.heads:
            for text in row:
                shape_of(text)

    def check(self, known: Known) -> None:
        """Raise unless every sparse layer is causal and has a row with a shape for each head."""
        causal_only(known.causal, "slashes are distances to the past")
        for layer in known.layers if self.heads else ():
            layer_row(self.heads, layer, known.heads, "heads", "shape")

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        causal_only(ctx.causal, "slashes are distances to the past")
        heads, device = x.q.shape[1], x.q.device
        row = (self.shape,) * heads
        if self.heads:
            total, mine = ctx.held(heads)
            row = layer_row(self.heads, ctx.layer, total, "heads", "shape")[mine]
        q, k = x.q.detach(), x.k.detach()
        if heads > k.shape[1]:
            k = k.repeat_interleave(heads // k.shape[1], 1)
        parts: dict[str, Tensor] = {}
        for text in dict.fromkeys(row):
            letter, counts = shape_of(text)
            mine = tuple(n for n, other in enumerate(row) if other == text)
            own = (q, k)
            if len(mine) < heads:
                at = constant(mine, torch.int64, str(device))
                own = (q[:, at], k[:, at])
            make = {"A": self._window, "V": self._lines, "B": self._blocks}[letter]
            parts[text] = make(*own, layout, ctx, *counts)
        if len(parts) == 1:
            return parts[row[0]]
        # head by head: the n-th of those of its shape
        seen = {text: iter(part.unbind(1)) for text, part in parts.items()}
        return torch.stack([next(seen[text]) for text in row], 1)

    def _window(
        self, q: Tensor, k: Tensor, layout: Layout, ctx: Context, first: int, local: int
    ) -> Tensor:
        """Score keys by their place and their distance."""
        start, key = _starts(layout, q.device)
        wide = torch.promote_types(q.dtype, torch.float32)
        place, distance = (key + 1).to(wide) / first, (start[:, None] - key + 1).to(wide) / local
        score = -torch.minimum(place, distance.clamp(min=0))
        return score.expand(*q.shape[:2], -1, -1)

    def _lines(
        self, q: Tensor, k: Tensor, layout: Layout, ctx: Context, columns: int, slashes: int
    ) -> Tensor:
        """Score keys by the better of their column and the slashes over them."""
        size, (start, key) = layout.q.size, _starts(layout, q.device)
        parts, name = ctx.cache.get("parts", {}), ("lines", columns, slashes)
        if name not in parts:
            column, slash = (
                -_rank(mass.index_fill(-1, key[:first], float("inf"))) / max(count, least)
                for mass, first, count, least in zip(
                    line_masses(q[:, :, -self.last :], k, ctx.scale),
                    (self.sink, self.local),
                    (columns, slashes),
                    (self.sink, 50),
                    strict=True,
                )
            )
            # a key t before the last query of a block is covered by the slashes t - size + 1 to t
            cover = F.max_pool1d(F.pad(slash, (size - 1, size), value=NEVER), size, 1)
            parts[name] = column, cover
        column, cover = parts[name]
        before = start[:, None] + size - 1 - key
        score = cover[..., before.clamp(min=0)].masked_fill_(before < 0, NEVER)
        return torch.maximum(score, column[:, :, None, : len(key)])

    def _blocks(self, q: Tensor, k: Tensor, layout: Layout, ctx: Context, count: int) -> Tensor:
        """Score keys by the rank of their block."""
        size, (start, key) = layout.q.size, _starts(layout, q.device)
        wide, parts = torch.promote_types(q.dtype, torch.float32), ctx.cache.get("parts", {})
        if ("blocks", count) not in parts:
            # the last part of a call, which comes first, holds all keys: of a block, too
            parts["blocks", count] = pool_blocks(k, size, dtype=wide, impl=ctx.impl)
        rows = pool_blocks(q, size, dtype=wide, impl=ctx.impl)
        cols = parts["blocks", count][:, :, : -(-len(key) // size)]
        product, ends = rows @ cols.mT, start + size
        block = torch.arange(product.shape[3], device=q.device) * size
        rank = _rank(product.masked_fill(block >= ends[:, None], NEVER))
        return (-rank / count).repeat_interleave(size, 3)[..., : len(key)]


def line_masses(q: Tensor, k: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Return the attention mass of every column and of every distance, [B, H, S] each.

    q: [B, H, R, D] the last queries; k: [B, H, S, D]. float32 or wider.
    """
    (rows, dim), length = q.shape[2:], k.shape[2]
    logits = (dim**-0.5 if scale is None else scale) * products(q, k)
    position = torch.arange(length - rows, length, device=q.device)
    late = torch.arange(length, device=q.device) > position[:, None]
    p = logits.masked_fill(late, NEVER).softmax(-1)
    # each row one place further than the row above it, so that distances stand in columns
    skew = F.pad(p.flip(-1), (0, rows)).flatten(2)[..., :-rows].unflatten(2, (rows, -1))
    return p.sum(2), skew.sum(2)[..., rows - 1 :]


def _rank(score: Tensor) -> Tensor:
    """Return the place of each entry among its row, 1 for the largest, in the entry's dtype."""
    order = score.argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(1, score.shape[-1] + 1, device=score.device, dtype=score.dtype)
    rank = torch.empty_like(score).scatter_(-1, order, place.expand_as(score))
    # a row of NaN has no order: it shows in the output
    return rank.masked_fill(score.isnan().any(-1, keepdim=True), float("nan"))


def _starts(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first position of every query block [M] and every key's [S], int64."""
    shift = layout.kv.length - layout.q.length
    start = torch.arange(layout.q.count, device=device) * layout.q.size + shift
    return start, torch.arange(layout.kv.length, device=device)
