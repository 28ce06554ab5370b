"""Attention of a language model: a causal prefill over random block lists, and a decoding step.

    prefill    all queries of one text; every query block keeps a share of the blocks it sees
    whole      the same without causality: the rate that a causal mask is to keep
    decode     the new query of each text over pages of its cache

Query heads share key heads. Nothing is timed whose output is wrong: rows of it are checked against
a float64 oracle, as everywhere (check.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dit_sparse.bench.check import error_share, refuse, sample
from dit_sparse.bench.kernel import by_shape, timed
from dit_sparse.bench.lm_dense import dense, flex_blocks
from dit_sparse.bench.machine import Timer, free_bytes, gib
from dit_sparse.bench.results import Row, Shape
from dit_sparse.core import QKV
from dit_sparse.kernels import attention
from dit_sparse.kernels.attention import Columns, block_sparse_attention
from dit_sparse.kernels.decode import decode_attention, page_scores
from dit_sparse.kernels.lists import dense_mask, top_lists
from dit_sparse.kernels.pool import pool_blocks

PHASES = ("prefill", "whole", "decode")
# (sequence, key head) -> which keys [G, R, S] its query heads see, G heads and R sampled queries
Seen = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Case:
    """A shape with its phase, the share of what is seen that is kept, and the size of a block.

    stripes: half of what is kept are single keys.
    """

    shape: Shape
    keep: float
    block: int
    stripes: bool = False

    @property
    def row(self) -> Row:
        """The row that our kernel is to fill."""
        told: dict[str, Any] = {"keep": self.keep, "block": self.block}
        return Row(
            self.shape, "ours", settings=told | ({"form": "stripes"} if self.stripes else {})
        )


def run(
    cases: Iterable[Case], timer: Timer, dtype: torch.dtype, impl: str = "auto", others: bool = True
) -> Iterator[Row]:
    """Check and time our kernels on each case, after the dense baselines of its shape.

    others: False leaves FlexAttention out, which compiles for every shape.
    """
    clock = replace(timer, replay=True)

    def rows(case: Case, x: QKV) -> Iterator[Row]:
        if case.shape.phase == "decode":
            return _decode_rows(case, x, clock, impl)
        return _prefill_rows(case, x, clock, impl, others)

    def make(case: Case) -> QKV | str:
        need, free = _need(case.shape, dtype), free_bytes(timer.device)
        if need > free:
            return f"needs about {gib(need)}, {gib(free)} are free"
        return draw(case.shape, timer.device, dtype)

    return by_shape(cases, clock, dtype, rows, partial(_dense_rows, others=others), make)


def draw(shape: Shape, device: torch.device, dtype: torch.dtype) -> QKV:
    """Draw normal q [B, H, Sq, D] and k, v [B, Hkv, S, D], the same numbers for the same shape."""
    g = torch.Generator(device).manual_seed(0)
    queries = 1 if shape.phase == "decode" else shape.tokens

    def one(heads: int, tokens: int) -> Tensor:
        size = (shape.batch or 1, heads, tokens, shape.head_dim)
        return torch.randn(size, generator=g, device=device, dtype=dtype)

    groups = shape.kv_heads or shape.heads
    return QKV(one(shape.heads, queries), one(groups, shape.tokens), one(groups, shape.tokens))


def _need(shape: Shape, dtype: torch.dtype) -> int:
    """Return about how many bytes a shape's cases take: tensors, copies of them, lists, oracle."""
    lists = 40 * shape.heads * (shape.tokens // 64) ** 2 if shape.phase != "decode" else 0
    return 2 * shape.bytes(dtype.itemsize) + lists + (1 << 12) * shape.tokens


def check(out: Tensor, lse: Tensor | None, x: QKV, rows: Tensor, seen: Seen, what: str) -> float:
    """Raise unless out [B, H, Sq, D] (and lse) is attention to what is seen; return the error.

    rows: sampled queries [R], of the first and the last sequence. The error is a share of its
    bound.
    """
    (batch, heads, _, dim), groups = x.q.shape, x.k.shape[1]
    # what came out, near and true, each with its lse
    found: list[list[Tensor]] = [[] for _ in range(6)]
    for b in dict.fromkeys((0, batch - 1)):
        for h in range(groups):
            mine = slice(h * (heads // groups), (h + 1) * (heads // groups))
            q, k, v, mask = x.q[b, mine][:, rows], x.k[b, h], x.v[b, h], seen(b, h)

            def attend(
                math: torch.dtype, q: Tensor = q, k: Tensor = k, v: Tensor = v, mask: Tensor = mask
            ) -> tuple[Tensor, Tensor]:
                logits = (dim**-0.5 * q.to(math) @ k.to(math).mT).masked_fill(~mask, float("-inf"))
                return logits.softmax(-1) @ v.to(math), logits.logsumexp(-1)

            true, (near, height) = attend(torch.float64), attend(torch.float32)
            got = height if lse is None else lse[b, mine][:, rows]
            heights = (t[..., None] for t in (got, height, true[1]))
            parts = (out[b, mine][:, rows], near.to(x.q.dtype), true[0], *heights)
            for into, part in zip(found, parts, strict=True):
                into.append(part)
    got, near, true, *heights = (torch.cat(parts) for parts in found)
    share = error_share(heights[0], heights[1], heights[2], x.q.dtype)
    return refuse(max(share, error_share(got, near, true, x.q.dtype)), what)


def _past(rows: Tensor, tokens: int, phase: str | None) -> Tensor:
    """Return which keys [R, S] the sampled queries see when nothing is left out."""
    every = torch.ones(len(rows), tokens, dtype=torch.bool, device=rows.device)
    key = torch.arange(tokens, device=rows.device)
    return key <= rows[:, None] if phase == "prefill" else every


def _dense_rows(shape: Shape, x: QKV, timer: Timer, *, others: bool) -> Iterator[Row]:
    """Check and time every dense baseline; none where nothing is set against them."""
    rows = sample(x.q.shape[2], x.q.device)
    past = _past(rows, shape.tokens, shape.phase)
    for name, make in dense(others).items() if shape.phase != "whole" else ():

        def verify(out: Tensor, name: str = name) -> float:
            return check(out, None, x, rows, lambda b, h: past[None], name)

        yield timed(Row(shape, name, sparse=False), timer, partial(make, x), verify)


def _decode_rows(case: Case, x: QKV, timer: Timer, impl: str) -> Iterator[Row]:
    """Time the kernel over drawn pages, then with the choice of the pages before it."""
    (batch, groups, tokens, _), page = x.k.shape, case.block
    g = torch.Generator(x.q.device).manual_seed(1)
    pages = -(-tokens // page)
    kept = max(1, round(case.keep * pages))
    index = torch.rand(batch, groups, 1, pages, generator=g, device=g.device).topk(kept).indices
    index = index.sort(-1).values.int()
    row, rows = replace(case.row, density=kept / pages), torch.zeros(1, dtype=torch.long)

    def verify(found: tuple[Tensor, ...], what: str) -> float:
        out, lse, index = found
        count = index.new_full(index.shape[:3], kept)

        def seen(b: int, h: int) -> Tensor:
            listed = dense_mask(count[b, h], index[b, h], pages)
            return listed.repeat_interleave(page, -1)[None, :, :tokens]

        return check(out, lse, x, rows, seen, what)

    def attend(index: Tensor, **more: Any) -> tuple[Tensor, ...]:
        k, v = more.pop("heap", x[1:])
        return *decode_attention(x.q, k, v, None, index, page=page, impl=impl, **more), index

    def choose(k: Tensor, size: int) -> tuple[Tensor, ...]:
        score = page_scores(x.q, k, page=size, impl=impl)
        return attend(top_lists(score, kept, impl=impl)[2])

    def listed() -> Any:
        return partial(attend, index)

    def anywhere() -> Any:
        """Move the pages of all sequences into one heap, in a random order."""
        at = torch.randperm(batch * pages, generator=g, device=g.device).view(batch, pages)
        heap = [t.new_empty(batch * pages, groups, page, t.shape[3]) for t in x[1:]]
        for t, whole in zip(heap, x[1:], strict=True):
            t[at] = whole.unflatten(2, (pages, page)).transpose(1, 2)
        return partial(attend, index, heap=heap, table=at.int())

    def from_means() -> Any:
        means = pool_blocks(x.k, page, impl=impl)
        return partial(choose, means, 1)

    calls = {"ours, listed pages": listed, "ours, pages chosen by kept means": from_means}
    calls["ours, pages chosen from all keys"] = lambda: partial(choose, x.k, page)
    if tokens % page == 0:
        calls["ours, listed pages anywhere"] = anywhere
    for what, build in calls.items():
        yield timed(replace(row, what=what), timer, build, partial(verify, what=what))


def block_lists(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw count [1, H, M] and index [1, H, M, C]: every row keeps its own block and a share of
    those it sees; with stripes of the even ones."""
    g = torch.Generator(device).manual_seed(1)
    causal, size = case.shape.phase == "prefill", case.shape.heads
    blocks = -(-case.shape.tokens // case.block)
    row, col = (torch.arange(blocks, device=device) for _ in range(2))
    seen = row + 1 if causal else torch.full_like(row, blocks)
    count = (case.keep * (0.5 if case.stripes else 1) * seen).round().clamp(min=1).int()
    rank = torch.rand(1, size, blocks, blocks, generator=g, device=device)
    if causal:
        rank.masked_fill_(col > row[:, None], -1)
    if case.stripes:
        rank.masked_fill_(col % 2 == 1, -1)
    rank.masked_fill_(col == row[:, None], 2)
    index = rank.topk(int(count.max()), -1).indices
    unused = torch.arange(index.shape[-1], device=device) >= count[:, None]
    index = index.masked_fill_(unused, blocks).sort(-1).values.masked_fill_(unused, 0).int()
    return count.expand(1, size, -1).contiguous(), index


def stripes(case: Case, x: QKV) -> Columns:
    """Draw single keys of the odd blocks before each query block: half of what is kept."""
    g = torch.Generator(x.q.device).manual_seed(2)
    rows, size = -(-case.shape.tokens // case.block), case.shape.heads
    row = torch.arange(rows, device=g.device)
    past = row // 2 * case.block
    count = (case.keep * row * case.block / 2).round().int().minimum(past.int())
    place = torch.arange(int(count.max()), device=g.device)
    # one key of each of `count` nearly equal parts of the past
    first, stop = ((place + n) * past[:, None] // count.clamp(min=1)[:, None] for n in (0, 1))
    share = torch.rand(1, size, rows, len(place), generator=g, device=g.device)
    index = (first + share * (stop - first)).int().minimum((stop - 1).int())
    index = index // case.block * (2 * case.block) + case.block + index % case.block
    index = index.masked_fill_(place >= count[:, None], 0)
    count = count.expand(1, size, -1).contiguous()
    return Columns(x.k, x.v, count=count, index=index)


def pairs(case: Case, count: Tensor, index: Tensor, columns: Columns | None) -> float:
    """Return how many visible pairs of a query and a key the lists of a case compute."""
    size, blocks = case.block, count.shape[-1]
    # the last block may be short, as queries and as keys
    short = blocks * size - case.shape.tokens
    queries = torch.full_like(count, size)
    queries[..., -1] -= short
    keys = count * size - short * (index == blocks - 1).any(-1)
    if columns is not None and columns.count is not None:
        keys = keys + columns.count
    found = (queries.double() * keys).sum()
    if case.shape.phase == "prefill":
        # of its own block a query sees no later key
        found -= (queries * (queries - 1) // 2).double().sum()
    return found.item()


def _prefill_rows(case: Case, x: QKV, timer: Timer, impl: str, others: bool) -> Iterator[Row]:
    """Time our kernel, and FlexAttention over the same lists."""
    shape, size = case.shape, case.block
    causal, tokens = shape.phase == "prefill", shape.tokens
    count, index = block_lists(case, timer.device)
    columns = stripes(case, x) if case.stripes else None
    options: dict[str, Any] = {"q_blocks": size, "kv_blocks": size, "causal": causal}
    options["columns"] = columns
    rows = sample(tokens, timer.device)
    past = _past(rows, tokens, shape.phase)

    def seen(b: int, h: int) -> Tensor:
        group = shape.heads // x.k.shape[1]
        mine = slice(h * group, (h + 1) * group)
        at = rows // size
        listed = dense_mask(count[b, mine][:, at], index[b, mine][:, at], -(-tokens // size))
        mask = listed.repeat_interleave(size, -1)[..., :tokens] & past
        if columns is None or columns.count is None or columns.index is None:
            return mask
        own = columns.count[b, mine][:, at], columns.index[b, mine][:, at]
        return mask | dense_mask(own[0], own[1], tokens)

    work = 4 * shape.head_dim * pairs(case, count, index, columns)
    row = replace(case.row, density=work / shape.flops())
    name, _ = attention.kernel(*x, **options, impl=impl)

    def ours() -> Any:
        return partial(block_sparse_attention, *x, count, index, **options, impl=impl)

    yield timed(
        replace(row, what=f"ours ({name})"), timer, ours,
        lambda found: check(found[0], found[1], x, rows, seen, "the kernel"),
    )  # fmt: skip
    if others and causal and columns is None:
        yield timed(
            replace(row, what="flex", foreign=True), timer,
            partial(flex_blocks, x, count, index, size),
            lambda out: check(out, None, x, rows, seen, "flex"),
        )  # fmt: skip
