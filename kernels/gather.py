"""Block-sparse attention in plain torch (impl "torch"): gather the listed keys, attend to them.

Formula and shapes as in attention.py. Any device, any dtype, differentiable, bounded scratch
memory. Used where Triton is not: CPU, old GPUs, the op's backward.

On a CPU, lists short enough for its cache go to _cached.py, unless gradients are wanted; what
follows is for the rest. Rows (one query tile each) are handled in chunks whose gathered keys and
values fit the scratch limit. On a CPU the rows are first sorted by their number of keys, so that
ragged lists are not padded to the longest one, and PyTorch's fused CPU kernel does the arithmetic.
Elsewhere nothing waits for the device: lists are padded to capacity. Listed columns are a second
pass over the same rows, merged by the log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dit_sparse.kernels import _cached
from dit_sparse.kernels._keys import Keys, attend, chunks, merge
from dit_sparse.kernels.contract import Columns, Cut, as_cut, block_bounds, per_head
from dit_sparse.kernels.tiling import mean_size, query_tiles

# gathered keys and values per chunk; on a CPU small enough to stay in the last-level cache
# Xeon, float32, d 64, 3072 tokens, keep .25: 3 to 16 MB cost the same CPU time within noise, 1 MB
# more
SCRATCH_MB = {"cpu": 4, "default": 256}
_TILE = 128


class _Tiles(NamedTuple):
    """Query tiles as rows: x [R, T, D] queries, head [R] = b H + h, row [R] = (b H + h) M + m,
    token [R, T] positions, inside [R, T] which of them the tile owns."""

    x: Tensor
    head: Tensor
    row: Tensor
    token: Tensor
    inside: Tensor


def _tiles(q: Tensor, cut: Cut) -> _Tiles:
    """Cut the queries into tiles; on a CPU only those that hold tokens."""
    batch, heads, s_q, dim = q.shape
    rows, device = cut.count(s_q), q.device
    if cut.offsets is None:
        tile = min(cut.size, _TILE)
        row = torch.arange(rows, device=device).repeat_interleave(-(-cut.size // tile))
        inner = torch.arange(-(-cut.size // tile), device=device).repeat(rows) * tile
        row, first = (x.expand(batch, heads, -1) for x in (row, row * cut.size + inner))
    else:
        # half the mean size: whole tiles of 128 would mostly hold the padding of small clusters
        tile = min(_TILE, max(16, 1 << (mean_size(cut, s_q) // 2).bit_length()))
        row, first = (per_head(x, batch, heads) for x in query_tiles(cut.offsets, s_q, tile))
    ends = per_head(
        torch.nn.functional.pad(block_bounds(cut, s_q, device)[1], (0, 1)), batch, heads
    )
    first, last = first.flatten(), ends.gather(2, row).flatten()
    head = torch.arange(batch * heads, device=device).repeat_interleave(row.shape[2])
    row = (head * rows + row.clamp(max=rows - 1).flatten()).contiguous()
    if device.type == "cpu" and bool((last <= first).any()):
        some = (last > first).nonzero()[:, 0]
        head, row, first, last = (x[some] for x in (head, row, first, last))
    token = first[:, None] + torch.arange(tile, device=device)
    inside = token < last[:, None]
    # places outside repeat token 0
    at = ((head * s_q)[:, None] + token).where(inside, 0)
    x = q.reshape(-1, dim).index_select(0, at.flatten()).view(-1, tile, dim)
    return _Tiles(x, head, row, token, inside)


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, *, q_blocks: Cut | int,
    kv_blocks: Cut | int, columns: Columns | None = None, tail: Tensor | None = None, row_mask:
    Tensor | None = None, causal: bool = False, scale: float | None = None, scratch_mb: int
    | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute attention.block_sparse_attention by gathering; `scratch_mb` bounds the gathered copy
    and keeps a call from _cached.py."""
    batch, heads, s_q, dim = q.shape
    dim_v, device = v.shape[3], q.device
    scale = dim**-0.5 if scale is None else scale
    cuts = as_cut(q_blocks), as_cut(kv_blocks)
    plain = row_mask is None and not causal and scratch_mb is None
    if plain and _cached.serves(q, k, v, kv_count, *cuts, columns, tail):
        return _cached.block_sparse_attention(
            q, k, v, kv_count, kv_index, q_blocks=cuts[0], kv_blocks=cuts[1], columns=columns,
            tail=tail, scale=scale,
        )  # fmt: skip
    limit = (scratch_mb or SCRATCH_MB.get(device.type, SCRATCH_MB["default"])) * 2**20
    tiles = _tiles(q, cuts[0])
    keys = Keys(k, v, cuts[1], heads)
    shift = k.shape[2] - s_q if causal else None
    out, lse = _listed(tiles, keys, kv_count, kv_index, scale, limit, shift, row_mask)
    if columns is not None and columns.index is not None:
        bias = None
        if columns.bias is not None:
            bias = per_head(columns.bias.to(lse.dtype), batch, heads).flatten(0, 1)
        groups = Keys(columns.k, columns.v, Cut(columns.group), heads)
        o, z = _listed(tiles, groups, columns.count, columns.index, scale, limit, bias=bias)
        o = o.to(lse.dtype)
        if tail is not None:
            matrix = per_head(tail, batch, heads).flatten(0, 1).to(o.dtype)
            parts = tiles.x.to(o.dtype).split(_spans(tiles, batch * heads))
            o = o + scale * torch.cat([x @ m for x, m in zip(parts, matrix, strict=True)])
        out, lse = merge(out, lse, o, z)
    elif columns is not None and columns.k.shape[2]:
        out, lse = _add_columns(tiles, out, lse, columns, tail, batch, heads, scale, limit)
    # rows to tokens; everything outside lands in one spare row
    total = batch * heads * s_q
    at = ((tiles.head * s_q)[:, None] + tiles.token).where(tiles.inside, total).flatten()
    full = q.new_zeros(total + 1, dim_v).index_copy(0, at, out.flatten(0, 1))
    low = torch.full((total + 1,), float("-inf"), device=device)
    low = low.index_copy(0, at, lse.flatten().float())
    return full[:-1].view(batch, heads, s_q, dim_v), low[:-1].view(batch, heads, s_q)


def _listed(
    tiles: _Tiles, keys: Keys, count: Tensor, index: Tensor, scale: float, limit: int, shift: int |
    None = None, row_mask: Tensor | None = None, bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attend every tile to the blocks of `keys` listed for its row: out [R, T, Dv], lse [R, T].

    count [B, H, M], index [B, H, M, C]: the lists; shift: Skv - Sq where causal; bias: [B H, Skv];
    row_mask: [B, H or 1, Sq, N].
    """
    x, head, row, token, inside = tiles
    device, tile, capacity = x.device, x.shape[1], index.shape[-1]
    on_cpu = device.type == "cpu"
    # lists: [rows, C] ascending ids, N where empty; a short last block thereby comes last
    listed = torch.arange(capacity, device=device) < count[..., None]
    ids = index.long().where(listed, keys.blocks).sort(-1).values.flatten(0, 2)[row]
    if shift is not None:
        last = torch.where(inside, token, -1).amax(1)
        seen = keys.start[head[:, None], ids] <= (last + shift)[:, None]
        ids = ids.where(seen, keys.blocks).sort(-1).values
    sizes = keys.size[head[:, None], ids]
    length, order = sizes.sum(-1), None
    if on_cpu and len(length) and (shift is not None or int(length.min()) < int(length.max())):
        order = length.argsort(dim=0, descending=True, stable=True)
        x, head, token, ids, sizes, length = (
            y[order] for y in (x, head, token, ids, sizes, length)
        )
    static = min(capacity * keys.cut.size, keys.tokens)
    lengths = length.tolist() if on_cpu else [static] * len(length)
    choice = None if row_mask is None else _choices(row_mask, tiles, keys)
    per_key = keys.row_bytes + (0 if on_cpu and choice is None else 8 * tile)
    need = shift is not None or choice is not None or bias is not None
    outs, lses, done = [], [], 0
    for lo, hi in chunks(lengths, per_key, limit):
        wide, at = lengths[lo], slice(lo, hi)
        kk, vv, position, entry = keys.take(head[at], ids[at], sizes[at], wide, need)
        hidden = None
        if not on_cpu or lengths[hi - 1] != wide:
            hidden = (torch.arange(wide, device=device) >= length[at, None])[:, None]
            # a row without keys has no key of its own to repeat, and 0 * nan would leak
            if not on_cpu:
                none = (length[at] == 0)[:, None, None]
                kk, vv = kk.masked_fill(none, 0), vv.masked_fill(none, 0)
        if shift is not None and position is not None:
            late = position[:, None] > (token[at] + shift)[..., None]
            hidden = late if hidden is None else hidden | late
        add = None
        if bias is not None and position is not None:
            add = bias[head[at][:, None], position][:, None]
        if hidden is not None:
            add = x.new_zeros((), dtype=_wide(x)) if add is None else add
            add = add.expand(torch.broadcast_shapes(add.shape, hidden.shape))
            add = add.masked_fill(hidden, float("-inf"))
        if choice is not None and entry is not None:
            mine = at if order is None else order[at]
            blocks = choice(mine, ids[at]).gather(2, entry[:, None].expand(-1, tile, -1))
            add = blocks if add is None else blocks + add
        out, lse = attend(x[at], kk, vv, add, scale)
        if add is not None:
            blind = hidden
            if blind is None or bias is not None or choice is not None:
                blind = add.detach() == float("-inf")
            none = blind.all(-1).expand(-1, tile)
            lse, out = lse.masked_fill(none, float("-inf")), out.masked_fill(none[..., None], 0)
        outs.append(out)
        lses.append(lse)
        done = hi
    kind = lses[0].dtype if lses else _wide(x)
    outs.append(x.new_zeros(len(length) - done, tile, keys.dim_v))
    lses.append(torch.full((len(length) - done, tile), float("-inf"), dtype=kind, device=device))
    out, lse = torch.cat(outs), torch.cat(lses)
    if order is not None:
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
        out, lse = out[back], lse[back]
    return out, lse


def _spans(tiles: _Tiles, heads: int) -> list[int]:
    """Return the number of tiles of each head; they stand in the order of their heads."""
    if tiles.x.device.type == "cpu":
        return torch.bincount(tiles.head, minlength=heads).tolist()
    return [len(tiles.head) // heads] * heads


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _choices(
    row_mask: Tensor, tiles: _Tiles, keys: Keys
) -> Callable[[Tensor | slice, Tensor], Tensor]:
    """Return a function (rows, ids [R, C]) -> [R, T, C], 0 where a query sees a listed block and
    -inf where not."""
    own, s_q = row_mask.shape[1:3]
    # one more block, hidden, for the ends of short lists
    table = torch.nn.functional.pad(row_mask != 0, (0, 1)).flatten(0, 2)
    table = (
        tiles.x.new_zeros((), dtype=_wide(tiles.x))
        .expand(table.shape)
        .masked_fill(~table, float("-inf"))
    )
    base = tiles.head if own > 1 else tiles.head // keys.heads
    place = (base[:, None] * s_q + tiles.token).where(tiles.inside, 0)
    return lambda rows, ids: table[place[rows][..., None], ids[:, None]]


def _add_columns(
    tiles: _Tiles, out: Tensor, lse: Tensor, columns: Columns, tail: Tensor | None, batch: int,
    heads: int, scale: float, limit: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Merge the columns (attended once per head, no gathering) into (out, lse) of the tiles.

    The share of the columns in the merge is the tail's weight.
    """
    ck, cv = (per_head(y, batch, heads).flatten(0, 1) for y in (columns.k, columns.v))
    x, row, (tile, dim) = tiles.x, tiles.row, tiles.x.shape[1:]
    n, wide = ck.shape[1], lse.dtype
    bias = shown = None
    if columns.bias is not None:
        bias = per_head(columns.bias.to(wide), batch, heads).flatten(0, 1)
    if columns.mask is not None:
        shown = per_head(columns.mask != 0, batch, heads).flatten(0, 2)[row]
    step = max(1, limit // (tile * n * 8))
    outs, lses, stop = [out[:0]], [lse[:0]], 0
    for group, size in enumerate(_spans(tiles, batch * heads)):
        b, h = group // heads, group % heads
        matrix = None if tail is None else per_head(tail, batch, heads)[b, h].to(wide)
        first, stop = stop, stop + size
        for lo in range(first, stop, step):
            at = slice(lo, min(lo + step, stop))
            add = None if bias is None else bias[group].expand(at.stop - lo, n)
            if shown is not None:
                add = (x.new_zeros((), dtype=wide) if add is None else add).expand(at.stop - lo, n)
                add = add.masked_fill(~shown[at], float("-inf"))
            # keys that no query of the slice sees may hold anything
            gone = None if add is None else (add.detach() == float("-inf")).all(0)[:, None]
            k, v = (y[group] if gone is None else y[group].masked_fill(gone, 0) for y in (ck, cv))
            rep = None if add is None else add.repeat_interleave(tile, 0)[None]
            o, z = attend(x[at].reshape(1, -1, dim), k[None], v[None], rep, scale)
            o, z = o.view(-1, tile, v.shape[-1]).to(wide), z.view(-1, tile)
            if add is not None:
                blind = (add.detach() == float("-inf")).all(-1)[:, None]
                z = z.masked_fill(blind, float("-inf"))
                o = o.masked_fill(blind[..., None], 0)
            if matrix is not None:
                o = o + scale * (x[at].to(wide) @ matrix)
            o, z = merge(out[at], lse[at], o, z)
            outs.append(o)
            lses.append(z)
    return torch.cat(outs), torch.cat(lses)
