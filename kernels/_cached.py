"""Block-sparse attention on a CPU without gradients: a few rows at a time, which stay in the cache.

Formula and shapes as in attention.py. Part of impl "torch": gather.py hands over what `serves`.

Rows (one query tile each) with lists of equal length go together, about as many as the caches of
the threads hold with their keys, values and logits. On so few queries two matrix products and an
exponential in place are faster than PyTorch's fused kernel, which cuts them into tiles of 32. The
memory of a chunk is used again by the next, for the first touch of a page costs more than its copy.
Blocks of nearly equal sizes are padded to the largest. Columns and tail join the same softmax.
"""

from __future__ import annotations

from math import gcd, prod
from typing import NamedTuple

import torch
from torch import Tensor

from dit_sparse.kernels._keys import chunks
from dit_sparse.kernels.contract import Columns, Cut, block_bounds, per_head

TILE = 128
# bytes of keys, values and logits of a chunk per thread
# Xeon with 2 MB of L2 cache a core, float32, d 64, 3600 tokens, keep .25: 3 to 6 MB cost the same
# within noise, 2 MB up to a fifth more
CHUNK = 3 << 20
# bytes of the logits of one tile, in the mean; beyond it they do not stay in the cache
LOGITS = 1 << 20
# blocks are padded to the largest where that adds no more than this
SLACK = 1.25
# tokens copied at once, at least, where nothing is padded for it
RUN = 4
# tokens copied at once, at most, where columns are padded to a multiple of them
MORE = 16


def serves(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, q_cut: Cut, kv_cut: Cut, columns: Columns |
    None, tail: Tensor | None,
) -> bool:  # fmt: skip
    """Tell whether a call (not causal, no row mask) is one for this file."""
    given = [q, k, v, tail, *(() if columns is None else (columns.k, columns.v, columns.bias))]
    grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    if q.device.type != "cpu" or q.dtype not in (torch.float32, torch.float64) or grad:
        return False
    listed = columns is not None and columns.index is not None
    cuts = ((q_cut, q, (1, q.shape[1])), (kv_cut, k, (1, k.shape[1])))
    if listed or not all(_is_even(*cut) for cut in cuts):
        return False
    # of a row, in the mean: a few long ones, of text, may leave the cache
    length = float(kv_count.double().mean()) * kv_cut.size
    length += 0 if columns is None else columns.k.shape[2]
    return _tile(q_cut, q.shape[2]) * length * q.element_size() <= LOGITS


def _is_even(cut: Cut, x: Tensor, heads: tuple[int, ...]) -> bool:
    """Tell whether padding all blocks of x to the largest adds few tokens, for one of `heads`."""
    if cut.offsets is None:
        return True
    padded = cut.count(x.shape[2]) * cut.size
    if cut.offsets.shape[1] not in heads or padded > SLACK * x.shape[2]:
        return False
    # padding repeats a token of its block
    return bool((cut.offsets.diff(dim=-1) > 0).all())


def _tile(cut: Cut, tokens: int) -> int:
    """Return the tokens of a tile: a block, or an equal part of a large one."""
    size = min(cut.size, tokens)
    return -(-size // -(-size // TILE))


class _Scratch:
    """Memory by name, for one chunk after the other."""

    def __init__(self) -> None:
        self.flat: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Return memory of the dtype of `like`; what it holds is lost at the next call for it."""
        size = prod(shape)
        if name not in self.flat or len(self.flat[name]) < size:
            self.flat[name] = like.new_empty(size)
        return self.flat[name][:size].view(shape)

    def pick(self, name: str, table: Tensor, at: Tensor) -> Tensor:
        """Return rows `at` [R] of table [., W]."""
        out = self.take(name, table, len(at), table.shape[1])
        return torch.index_select(table, 0, at, out=out)


class _Tiles(NamedTuple):
    """Query tiles that hold tokens: head [R] = b H + h, row [R] = (b H + h) M + m; at [R, T / run]
    the runs of `run` tokens they own, the spare run past the last where they own none."""

    head: Tensor
    row: Tensor
    at: Tensor
    run: int


def _tiles(q: Tensor, cut: Cut) -> _Tiles:
    """Cut the queries into tiles."""
    batch, heads, tokens, _ = q.shape
    tile = _tile(cut, tokens)
    run = gcd(tile, cut.size, tokens) if cut.offsets is None else 1
    start, end = (
        per_head(x, batch, heads).flatten(0, 1) for x in block_bounds(cut, tokens, q.device)
    )
    first = start[..., None] + torch.arange(0, min(cut.size, tokens), tile)
    used = first < end[..., None]
    head, block, _ = used.nonzero().unbind(1)
    token = first[used][:, None] + torch.arange(0, tile, run)
    base = (head * tokens)[:, None]
    inside = token < end[head, block][:, None]
    at = (base + token).div(run, rounding_mode="floor").where(inside, batch * heads * tokens // run)
    return _Tiles(head, head * start.shape[1] + block, at, run)


class _Keys(NamedTuple):
    """Keys and values, those of the columns behind, as tables [rows, run D] and [rows, run Dv].

    first: [B H, N + 1] the first row of each block, of `per` rows each; room: [N + 1] its tokens
    with padding, 0 for the last, which is no block; weight: [rows, run] 1 for a token and 0 for
    padding, whose values are 0, None where nothing is padded; columns: [B H, W / run] the rows of
    each head's W columns.
    """

    k: Tensor
    v: Tensor
    first: Tensor
    room: Tensor
    weight: Tensor | None
    columns: Tensor
    run: int
    per: int


def _keys(k: Tensor, v: Tensor, cut: Cut, heads: int, columns: Columns | None) -> _Keys:
    """Store the keys and values of the blocks; copied only for padding or columns."""
    batch, kv_heads, tokens, _ = k.shape
    count, weight = cut.count(tokens), None
    size = min(cut.size, tokens) if cut.offsets is None else cut.size
    run, room, stored = gcd(size, tokens), torch.full((count + 1,), size), tokens
    room[-1] = 0
    if cut.offsets is not None:
        k, v, weight = _boxes(k, v, cut)
        run, stored = size, count * size
    else:
        room[-2] = tokens - (count - 1) * size
        if run < min(RUN, size):
            run, stored = size, count * size
            k, v = (torch.nn.functional.pad(x, (0, 0, 0, stored - tokens)) for x in (k, v))
    head, rest = torch.arange(batch * heads)[:, None], torch.zeros(batch * heads, 0).long()
    if columns is not None:
        run = max(n for n in range(1, MORE + 1) if run % n == 0)
    k, v = (x.reshape(-1, run * x.shape[-1]) for x in (k, v))
    if columns is not None:
        short, stop = -columns.k.shape[2] % run, len(k)
        tables = (torch.nn.functional.pad(x, (0, 0, 0, short)) for x in (columns.k, columns.v))
        tables = (x.reshape(-1, run * x.shape[-1]) for x in tables)
        k, v = (torch.cat(pair) for pair in zip((k, v), tables, strict=True))
        if weight is not None:
            weight = torch.cat((weight.view(-1, run), weight.new_ones(len(k) - stop, run)))
        width = (columns.k.shape[2] + short) // run
        rest = stop + _kv_head(head, heads, columns.k.shape[1]) * width + torch.arange(width)
    first = _kv_head(head, heads, kv_heads) * (stored // run)
    first = first + torch.arange(count + 1) * (size // run)
    return _Keys(k, v, first, room, weight, rest, run, size // run)


def _boxes(k: Tensor, v: Tensor, cut: Cut) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens of the blocks, padded to the largest, as keys [B Hkv N, size, D], values,
    and weights [B Hkv N, size]."""
    batch, kv_heads, tokens, _ = k.shape
    bounds = block_bounds(cut, tokens, k.device)
    start, end = (per_head(x, batch, kv_heads).flatten(0, 1)[..., None] for x in bounds)
    inner = torch.arange(cut.size)
    real = (inner < end - start).flatten(0, 1)
    # padding repeats the first key of its block, which changes no peak
    start = (start + (torch.arange(batch * kv_heads) * tokens)[:, None, None]).flatten(0, 1)
    place = (start + inner).where(real, start).flatten()
    k, v = (x.reshape(-1, x.shape[3]).index_select(0, place) for x in (k, v))
    k, v = (x.view(*real.shape, -1) for x in (k, v))
    return k, v.masked_fill_(~real[..., None], 0), real.to(k.dtype)


def _kv_head(head: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Return b Hkv + hkv of b H + h."""
    return head // heads * kv_heads + head % heads // (heads // kv_heads)


def _bias(columns: Columns, batch: int, heads: int, rows: int, width: int) -> Tensor:
    """Return what is added to the logits of the columns, [B H M, W], -inf where hidden."""
    n = columns.k.shape[2]
    bias = columns.k.new_full((batch, heads, rows, width), float("-inf"))
    bias[..., :n] = 0 if columns.bias is None else per_head(columns.bias, batch, heads)[:, :, None]
    if columns.mask is not None:
        gone = per_head(columns.mask == 0, batch, heads)
        bias[..., :n].masked_fill_(gone, float("-inf"))
    return bias.flatten(0, 2)


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, *, q_blocks: Cut,
    kv_blocks: Cut, columns: Columns | None, tail: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute attention.block_sparse_attention for a call that `serves`."""
    batch, heads, tokens, dim = q.shape
    tiles, keys = _tiles(q, q_blocks), _keys(k, v, kv_blocks, heads, columns)
    run, tile = tiles.run, tiles.at.shape[1] * tiles.run
    # lists: [R, C] ascending ids, N where empty; a short last block thereby comes last
    listed = torch.arange(kv_index.shape[-1]) < kv_count[..., None]
    ids = kv_index.long().where(listed, kv_blocks.count(k.shape[2])).sort(-1).values.flatten(0, 2)
    ids = ids[:, : int(kv_count.max())].index_select(0, tiles.row)
    width = keys.columns.shape[1] * keys.run
    length = keys.room[ids].sum(-1) + width
    order = length.argsort(descending=True, stable=True)
    head, row, at, ids, length = (x.index_select(0, order) for x in (*tiles[:3], ids, length))
    places = (keys.first[head[:, None], ids][..., None] + torch.arange(keys.per)).flatten(1)
    places = torch.cat((keys.columns[head], places), 1).clamp_(max=len(keys.k) - 1)
    bias = None
    if columns is not None:
        bias = _bias(columns, batch, heads, q_blocks.count(tokens), width)
    if tail is not None:
        tail = scale * per_head(tail.to(q.dtype), batch, heads).flatten(0, 1)
    x, memory = q.reshape(-1, run * dim), _Scratch()
    # one spare run takes what tiles do not own; blocks with offsets may leave tokens out
    make = q.new_empty if q_blocks.offsets is None else q.new_zeros
    out = make(len(x) + 1, run * v.shape[3])
    lse = q.new_full((len(x) + 1, run), float("-inf"))
    lengths, done = length.tolist(), 0
    per_key = (dim + v.shape[3] + tile) * q.element_size()
    threads = torch.get_num_threads()
    for start, done in chunks(lengths, per_key, CHUNK * threads, threads):
        part, wide = slice(start, done), lengths[start]
        mine = at[part].flatten()
        queries = memory.pick("q", x, mine.clamp(max=len(x) - 1)).view(done - start, tile, dim)
        kk, vv, weight = _gather(keys, places[part, : -(-wide // keys.run)], wide, memory)
        past = None
        if lengths[done - 1] < wide:
            past = torch.arange(wide) >= length[part, None]
        extra = None if bias is None else bias.index_select(0, row[part])
        slope = None if tail is None else tail.index_select(0, head[part])
        o, z = _attend(queries, kk, vv, weight, past, extra, slope, scale, memory)
        out.index_copy_(0, mine, o.view(-1, out.shape[1]))
        lse.index_copy_(0, mine, z.view(-1, run))
    if done < len(at):
        out.index_fill_(0, at[done:].flatten(), 0)
    shape = batch, heads, tokens
    return out[:-1].view(*shape, -1), lse[:-1].view(shape).float()


def _gather(
    keys: _Keys, places: Tensor, wide: int, memory: _Scratch
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the first `wide` keys [R, wide, D] at places [R, L] of the table, the values, and
    the weights [R, wide, 1] or None."""
    flat, rows = places.flatten(), len(places)
    k, v = (memory.pick(name, t, flat) for name, t in (("k", keys.k), ("v", keys.v)))
    k, v = (t.view(rows, -1, t.shape[1] // keys.run)[:, :wide] for t in (k, v))
    if keys.weight is None:
        return k, v, None
    return k, v, memory.pick("weight", keys.weight, flat).view(rows, -1, 1)[:, :wide]


def _attend(
    x: Tensor, k: Tensor, v: Tensor, weight: Tensor | None, past: Tensor | None, bias: Tensor |
    None, tail: Tensor | None, scale: float, memory: _Scratch,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attend x [R, T, D] to k [R, L, D], v [R, L, Dv]: out [R, T, Dv], lse [R, T, 1].

    weight: [R, L, 1]; past: [R, L] keys beyond a row's list; bias: [R, W] of the first keys, which
    are columns; tail: [R, D, Dv], scaled.
    """
    s = memory.take("logits", x, *x.shape[:2], k.shape[1])
    torch.baddbmm(s, x, k.mT, beta=0, alpha=scale, out=s)
    if past is not None:
        s.masked_fill_(past[:, None], float("-inf"))
    if bias is not None:
        s[..., : bias.shape[1]] += bias[:, None]
    peak = s.amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).min)
    s.sub_(peak).exp_()
    total = s.sum(-1, keepdim=True) if weight is None else torch.bmm(s, weight)
    out = torch.bmm(s, v, out=memory.take("out", x, *x.shape[:2], v.shape[2]))
    if bias is not None and tail is not None:
        # the queries themselves are not needed any more
        out.baddbmm_(x.mul_(s[..., : bias.shape[1]].sum(-1, keepdim=True)), tail)
    if bias is None or (past is None and bias.shape[1] < k.shape[1]):
        return out.div_(total), total.log_().add_(peak)
    # a row of hidden columns alone sees nothing
    seen = total != 0
    total = total.where(seen, 1)
    return out.div_(total), (total.log() + peak).where(seen, float("-inf"))
