"""Random block lists, and the forms of a kernel call: what it takes beside equal blocks.

    equal      blocks of one size
    boxes      blocks of three quarters to all of that size, as tiles of a grid that none divides
    clusters   blocks of any size around the mean, other ones for every head
    columns    equal blocks, and a pooled column for every block that is not kept
    tail       columns, and their first-order term
    listed     equal blocks, and groups of 16 pooled columns of which a tenth is listed
    choice     every query sees half of the blocks that its tile lists

What is measured is counted: pairs of a query with a key of a kept block or with a column it sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dit_sparse.bench.baselines import Lists
from dit_sparse.bench.results import Row, Shape
from dit_sparse.core import QKV
from dit_sparse.kernels.attention import Columns, Cut
from dit_sparse.kernels.contract import as_cut, block_bounds, per_head
from dit_sparse.kernels.lists import dense_mask

FORMS = ("equal", "boxes", "clusters", "columns", "tail", "listed", "choice")
GROUP = 16


@dataclass(frozen=True)
class Case:
    """One choice of lists. spread: the longest list over the shortest, 1 = all equally long."""

    shape: Shape
    density: float
    block_q: int = 128
    block_kv: int = 128
    spread: float = 1.0
    form: str = "equal"

    @property
    def counts(self) -> tuple[int, int]:
        """Blocks of queries and of keys; boxes have seven eighths of their size on average."""
        sizes = (self.block_q, self.block_kv)
        if self.form == "boxes":
            sizes = tuple(size * 7 // 8 for size in sizes)
        rows, blocks = (-(-self.shape.tokens // size) for size in sizes)
        return rows, blocks

    @property
    def pairs(self) -> int:
        """Pairs of blocks in a head."""
        return math.prod(self.counts)

    @property
    def row(self) -> Row:
        """The row that our kernel is to fill."""
        told = {"keep": self.density, "block": f"{self.block_q}x{self.block_kv}"}
        told |= {} if self.spread == 1 else {"spread": f"{self.spread:g}"}
        told |= {} if self.form == "equal" else {"form": self.form}
        return Row(self.shape, "ours", settings=told)


def random_lists(case: Case, device: torch.device) -> Lists:
    """Draw ascending lists; their lengths are uniform between bounds whose ratio is the spread.

    spread=1000 draws from one block to twice the mean. A list never exceeds all blocks, so that a
    wide spread at a high density lowers the mean; a row's density is counted, never assumed.
    """
    g = torch.Generator(device).manual_seed(1)
    drawn = _draw((1, case.shape.heads, case.counts[0]), case.counts[1], case, g)
    return Lists(*drawn, case.block_q, case.block_kv)


def _draw(
    size: tuple[int, int, int], blocks: int, case: Case, g: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw count [1, H, M] and index [1, H, M, C] of some of `blocks` blocks."""
    mean, share = case.density * blocks, case.spread / (1 + case.spread)
    low, high = 2 * mean * (1 - share), 2 * mean * share
    count = low + (high - low) * torch.rand(size, generator=g, device=g.device)
    count = count.round().clamp(1, blocks).int()
    longest = min(blocks, max(1, round(high)))
    # what is kept of the ids drawn for a row, then ascending with the unused ones behind
    index = torch.rand(*size, blocks, generator=g, device=g.device).topk(longest, -1).indices
    unused = torch.arange(longest, device=g.device) >= count[..., None]
    index = index.masked_fill(unused, blocks).sort(-1).values
    return count, index.masked_fill(unused, 0).int()


def call_options(case: Case, x: QKV, lists: Lists) -> dict[str, Any]:
    """Return the options of the kernel call over the lists of a case."""
    g = torch.Generator(x.q.device).manual_seed(2)
    (_, heads, tokens, dim), (rows, blocks) = x.q.shape, case.counts
    found: dict[str, Any] = {
        "q_blocks": _cut(case, heads, case.block_q, rows, g),
        "kv_blocks": _cut(case, heads, case.block_kv, blocks, g),
    }
    if case.form in ("columns", "tail"):
        shown = ~dense_mask(lists.count, lists.index, blocks)
        bias = torch.full((1, 1, blocks), math.log(case.block_kv), device=g.device)
        found["columns"] = Columns(*_pooled(x, blocks, g), bias, shown)
    if case.form == "tail":
        tail = torch.randn(1, heads, dim, dim, generator=g, device=g.device)
        found["tail"] = (tail / dim).to(x.q.dtype)
    if case.form == "listed":
        # means of 2, 4 and 8 tokens
        groups = max(1, 7 * tokens // 8 // GROUP)
        listed = _draw((1, heads, rows), groups, replace(case, density=0.1, spread=1.0), g)
        found["columns"] = Columns(*_pooled(x, groups * GROUP, g), None, None, *listed, GROUP)
    if case.form == "choice":
        size = (1, heads, tokens, blocks)
        mask = torch.rand(size, generator=g, device=g.device) < 0.5
        # nobody sees nothing
        first = lists.index[..., :1].long().repeat_interleave(case.block_q, 2)[:, :, :tokens]
        found["row_mask"] = mask.scatter_(3, first, True)
    return found


def _cut(case: Case, heads: int, block: int, count: int, g: torch.Generator) -> Cut:
    """Return the cut of an axis into `count` blocks, in the form of the case."""
    tokens = case.shape.tokens
    if case.form not in ("boxes", "clusters"):
        return Cut(block)
    ends = torch.arange(1, count + 1, device=g.device)[None, None] * (tokens / count)
    if case.form == "boxes":
        # each end moves by a sixteenth: sizes of three quarters to all of the block
        ends += (torch.rand(ends.shape, generator=g, device=g.device) - 0.5) * (block / 8)
    else:
        size = torch.rand(1, heads, count, generator=g, device=g.device) + 0.1
        ends = size.cumsum(-1) * (tokens / size.sum(-1, keepdim=True))
    ends = ends.round().int()
    ends[..., -1] = tokens
    # nothing bounds a cluster
    size = block if case.form == "boxes" else tokens
    return Cut(size, torch.nn.functional.pad(ends, (1, 0)))


def _pooled(x: QKV, count: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw keys and values of columns."""
    size = (*x.k.shape[:2], count, x.k.shape[3])
    k, v = (torch.randn(size, generator=g, device=g.device, dtype=x.k.dtype) for _ in range(2))
    return k, v


def density(lists: Lists, tokens: int, options: dict[str, Any] | None = None) -> float:
    """Count the pairs that a call computes as a share of all; a choice counts what its tile lists.

    options: those of the call; None: equal blocks and nothing else.
    """
    given = {"q_blocks": lists.block_q, "kv_blocks": lists.block_kv, **(options or {})}
    heads, device = lists.count.shape[1], lists.index.device
    bounds = (block_bounds(as_cut(given[k]), tokens, device) for k in ("q_blocks", "kv_blocks"))
    rows, keys = (per_head((end - start).double(), 1, heads) for start, end in bounds)
    keys = keys[:, :, None].expand(-1, -1, rows.shape[2], -1).gather(3, lists.index.long())
    kept = torch.arange(keys.shape[-1], device=device) < lists.count[..., None]
    seen, columns = (keys * kept).sum(-1), given.get("columns")
    if columns is not None:
        shown = columns.mask.sum(-1) if columns.count is None else columns.count * columns.group
        seen = seen + shown
    return float((rows * seen).sum()) / (heads * tokens**2)
