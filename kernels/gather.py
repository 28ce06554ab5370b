"""Block-sparse attention in plain torch (impl "torch"): gather the kept blocks, attend to them.

Formula and shapes as in attention.py. Any device, any dtype, differentiable, bounded scratch
memory. Used where
Triton is not: CPU, old GPUs, the op's backward.

Rows (one query tile each) are handled in chunks whose gathered keys and values fit the scratch
limit. On a CPU the rows are first sorted by their number of keys, so that ragged lists are not
padded to the longest one, and PyTorch's fused CPU kernel does the arithmetic. Elsewhere nothing
waits for the device: lists are padded to capacity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Columns, Cut, as_cut, block_bounds, per_head

# gathered keys and values per chunk; on a CPU small enough to stay in the last-level cache
# Xeon, float32, d 64, 3072 tokens, keep .25: 3 to 16 MB cost the same CPU time within noise, 1 MB
# more
SCRATCH_MB = {"cpu": 4, "default": 256}
_TILE = 128


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend q [R, T, D] to k, v [R, L, D] with an additive float bias [R, 1 or T, L] or None."""
    needs_grad = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k, v, bias)
    )
    if q.device.type == "cpu" and not needs_grad and q.shape[-1] == v.shape[-1]:
        mask = None if bias is None else bias[:, None].expand(q.shape[0], 1, q.shape[1], k.shape[1])
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, None], k[:, None], v[:, None], attn_mask=mask, scale=scale
        )
        return out[:, 0], lse[:, 0]
    wide = torch.promote_types(q.dtype, torch.float32)
    s = torch.bmm(q.to(wide), k.to(wide).transpose(1, 2)) * scale
    if bias is not None:
        s = s + bias
    peak = s.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(wide).min)
    p = (s - peak).exp()
    total = p.sum(-1, keepdim=True)
    live = total > 0
    out = torch.bmm(p, v.to(wide)) / total.where(live, 1)
    return out.to(q.dtype), (peak + total.where(live, 1).log()).squeeze(-1)


class _Keys:
    """Keys and values as one flat table of rows, gathered by block where blocks are equal, else by
    token."""

    def __init__(self, k: Tensor, v: Tensor, cut: Cut, heads: int):
        batch, kv_heads, tokens, _ = k.shape
        self.cut, self.tokens, self.uniform = cut, tokens, cut.offsets is None
        self.blocks = cut.count(tokens)
        start, end = block_bounds(cut, tokens, k.device)
        size = (end - start).clamp(min=0)
        pad = torch.nn.functional.pad
        # entry N stands for "no block": size 0
        self.start, self.size = (per_head(pad(x, (0, 1)), batch, heads) for x in (start, size))
        stored = self.blocks * cut.size if self.uniform else tokens
        table = (pad(x, (0, 0, 0, stored - tokens)) if stored > tokens else x for x in (k, v))
        width = cut.size if self.uniform else 1
        self.k, self.v = (
            x.reshape(batch * kv_heads * stored // width, width * x.shape[-1]) for x in table
        )
        head = torch.arange(batch * heads, device=k.device)
        self.base = (head // heads * kv_heads + head % heads // (heads // kv_heads)) * (
            stored // width
        )

    def take(
        self, head: Tensor, ids: Tensor, sizes: Tensor, length: int, need_position: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gather [R, length, D] keys and values and their positions [R, length] of blocks [R, C].

        Places past a row's own length repeat its first key: what they hold is hidden later.
        """
        rows, position = ids.shape[0], None
        if self.uniform:
            ids = ids[:, : -(-length // self.cut.size)]
            place = ids.where(ids < self.blocks, ids[:, :1]).clamp(max=self.blocks - 1)
            at = self.base[head][:, None] + place
            if need_position:
                inner = torch.arange(self.cut.size, device=ids.device)
                position = (place[..., None] * self.cut.size + inner).flatten(1)[:, :length]
        else:
            ends = sizes.cumsum(-1)
            step = torch.arange(length, device=ids.device).expand(rows, length).contiguous()
            entry = torch.searchsorted(ends, step, right=True).clamp(max=ids.shape[1] - 1)
            first = self.start.flatten(0, 1)[head[:, None], ids]
            position = (first - ends + sizes).gather(1, entry) + step
            position = position.where(step < ends[:, -1:], position[:, :1])
            at = self.base[head][:, None] + position.clamp(0, self.tokens - 1)
        k, v = (
            x.index_select(0, at.flatten()).view(rows, -1, x.shape[1] // self.width)
            for x in (self.k, self.v)
        )
        return k[:, :length], v[:, :length], position

    @property
    def width(self) -> int:
        return self.cut.size if self.uniform else 1


def _chunks(lengths: list[int], per_key: int, limit: int) -> list[tuple[int, int]]:
    """Cut rows, sorted by falling length, into chunks within the limit, of equal length where that
    is cheap."""
    chunks, at = [], 0
    while at < len(lengths) and lengths[at]:
        fit = max(1, limit // (lengths[at] * per_key))
        stop = min(len(lengths), at + fit)
        equal = at + 1
        while equal < stop and lengths[equal] == lengths[at]:
            equal += 1
        if equal - at < min(4, fit):
            while equal < stop and lengths[equal] >= 0.9 * lengths[at]:
                equal += 1
        chunks.append((at, equal))
        at = equal
    return chunks


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, *, q_blocks: Cut | int,
    kv_blocks: Cut | int, columns: Columns | None = None, tail: Tensor | None = None, row_mask:
    Tensor | None = None, causal: bool = False, scale: float | None = None, scratch_mb: int
    | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute attention.block_sparse_attention by gathering; `scratch_mb` bounds the gathered
    copy."""
    batch, heads, s_q, dim = q.shape
    s_kv, dim_v, device = k.shape[2], v.shape[3], q.device
    q_cut, kv_cut = as_cut(q_blocks), as_cut(kv_blocks)
    scale = dim**-0.5 if scale is None else scale
    keys = _Keys(k, v, kv_cut, heads)
    n, rows, capacity = keys.blocks, kv_count.shape[2], kv_index.shape[3]

    # query tiles: [batch * heads * rows * tiles] rows of `tile` tokens; the dump row follows the
    # last token
    tile = min(q_cut.size, _TILE)
    tiles = -(-q_cut.size // tile)
    start, end = (per_head(x, batch, heads) for x in block_bounds(q_cut, s_q, device))
    first = (start[..., None] + torch.arange(tiles, device=device) * tile).flatten()
    last = torch.minimum(end[..., None].expand(-1, -1, -1, tiles).flatten(), first + tile)
    head = torch.arange(batch * heads, device=device).repeat_interleave(rows * tiles)

    # lists: [rows, C] ascending ids, N where empty; a short last block thereby comes last
    listed = torch.arange(capacity, device=device) < kv_count[..., None]
    ids = kv_index.long().where(listed, n).sort(-1).values.flatten(0, 2)
    ids = ids if tiles == 1 else ids.repeat_interleave(tiles, 0)
    if causal:
        seen = keys.start.flatten(0, 1)[head[:, None], ids] < (last + (s_kv - s_q))[:, None]
        ids = ids.where(seen, n).sort(-1).values
    sizes = keys.size.flatten(0, 1)[head[:, None], ids]
    length = sizes.sum(-1)

    limit = (scratch_mb or SCRATCH_MB.get(device.type, SCRATCH_MB["default"])) * 2**20
    per_key = (dim + dim_v) * q.element_size()
    token = first[:, None] + torch.arange(tile, device=device)
    inside = token < last[:, None]
    place = (head * s_q)[:, None] + token
    # x: [rows, tile, D], queries by row; short rows repeat token 0
    x = q.reshape(-1, dim).index_select(0, place.where(inside, 0).flatten()).view(-1, tile, dim)
    order = None
    if device.type == "cpu":
        length = length.where(last > first, 0)
        if causal or int(length.min()) < int(length.max()):
            order = length.argsort(dim=0, descending=True, stable=True)
            rowwise = (x, head, ids, sizes, length, token)
            x_, head_, ids_, sizes_, length_, token_ = (y[order] for y in rowwise)
    else:
        per_key += 8 * tile
    if order is None:
        x_, head_, ids_, sizes_, length_, token_ = x, head, ids, sizes, length, token
    static = min(capacity * kv_cut.size, s_kv)
    lengths = length_.tolist() if device.type == "cpu" else [static] * len(length)
    outs, lses, done = [], [], 0
    for lo, hi in _chunks(lengths, per_key, limit):
        wide = lengths[lo]
        kk, vv, position = keys.take(head_[lo:hi], ids_[lo:hi], sizes_[lo:hi], wide, causal)
        hidden = None
        if device.type != "cpu" or lengths[hi - 1] != wide:
            hidden = (torch.arange(wide, device=device) >= length_[lo:hi, None])[:, None]
            # a row without keys has no key of its own to repeat, and 0 * nan would leak
            none = (length_[lo:hi] == 0)[:, None, None]
            if device.type != "cpu":
                kk, vv = kk.masked_fill(none, 0), vv.masked_fill(none, 0)
        if causal:
            late = position[:, None] > (token_[lo:hi] + (s_kv - s_q))[..., None]
            hidden = late if hidden is None else hidden | late
        out, lse = _attend(x_[lo:hi], kk, vv, _bias(hidden, q.dtype), scale)
        if hidden is not None:
            none = hidden.all(-1).expand(-1, tile)
            lse, out = lse.masked_fill(none, float("-inf")), out.masked_fill(none[..., None], 0)
        outs.append(out)
        lses.append(lse)
        done = hi
    kind = lses[0].dtype if lses else torch.promote_types(q.dtype, torch.float32)
    outs.append(q.new_zeros(len(length) - done, tile, dim_v))
    lses.append(torch.full((len(length) - done, tile), float("-inf"), dtype=kind, device=device))
    out, lse = torch.cat(outs), torch.cat(lses)
    if order is not None:
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
        out, lse = out[back], lse[back]
    if columns is not None and columns.k.shape[2]:
        shown = None
        if columns.mask is not None:
            shown = per_head(columns.mask != 0, batch, heads).flatten(0, 2)
            shown = shown if tiles == 1 else shown.repeat_interleave(tiles, 0)
        out, lse = _add_columns(x, out, lse, columns, shown, tail, batch, heads, scale, limit)
    # rows to tokens; everything outside lands in one spare row
    at = place.where(inside, batch * heads * s_q).flatten()
    full = q.new_zeros(batch * heads * s_q + 1, dim_v).index_copy(0, at, out.flatten(0, 1))
    low = torch.full((batch * heads * s_q + 1,), float("-inf"), device=device)
    low = low.index_copy(0, at, lse.flatten().float())
    return full[:-1].view(batch, heads, s_q, dim_v), low[:-1].view(batch, heads, s_q)


def _bias(hidden: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the additive form of a mask: -inf where hidden."""
    if hidden is None:
        return None
    zero = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
    return zero.expand(hidden.shape).masked_fill(hidden, float("-inf"))


def _add_columns(
    x: Tensor, out: Tensor, lse: Tensor, columns: Columns, shown: Tensor | None, tail: Tensor |
    None, batch: int, heads: int, scale: float, limit: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Merge the columns (attended once per head, no gathering) into (out, lse) of rows x [R, T, D].

    shown: [R, C2] bool or None. The share of the columns in the merge is the tail's weight.
    """
    ck, cv = (per_head(y, batch, heads).flatten(0, 1) for y in (columns.k, columns.v))
    rows, tile, dim = x.shape[0] // (batch * heads), *x.shape[1:]
    n, wide = ck.shape[1], lse.dtype
    bias = None
    if columns.bias is not None:
        bias = per_head(columns.bias.to(wide), batch, heads).flatten(0, 1)
    step = max(1, min(rows, limit // (tile * n * 8)))
    outs, lses = [], []
    for head in range(batch * heads):
        matrix = None if tail is None else per_head(tail, batch, heads)[head // heads, head % heads]
        for lo in range(head * rows, (head + 1) * rows, step):
            at = slice(lo, min(lo + step, (head + 1) * rows))
            add = None if bias is None else bias[head].expand(at.stop - lo, n)
            if shown is not None:
                add = (x.new_zeros((), dtype=wide) if add is None else add).expand(at.stop - lo, n)
                add = add.masked_fill(~shown[at], float("-inf"))
            # keys that no query of the slice sees may hold anything
            gone = None if add is None else (add.detach() == float("-inf")).all(0)[:, None]
            k, v = (y[head] if gone is None else y[head].masked_fill(gone, 0) for y in (ck, cv))
            rep = None if add is None else add.repeat_interleave(tile, 0)[None]
            o, z = _attend(x[at].reshape(1, -1, dim), k[None], v[None], rep, scale)
            o, z = o.view(-1, tile, v.shape[-1]).to(wide), z.view(-1, tile)
            if add is not None:
                blind = (add.detach() == float("-inf")).all(-1)[:, None]
                z = z.masked_fill(blind, float("-inf"))
                o = o.masked_fill(blind[..., None], 0)
            if matrix is not None:
                o = o + scale * (x[at].to(wide) @ matrix.to(wide))
            peak = torch.maximum(lse[at], z).detach()
            peak = peak.masked_fill(peak.isinf(), 0)
            a, b = (lse[at] - peak).exp()[..., None], (z - peak).exp()[..., None]
            total = a + b
            some = total > 0
            total = total.where(some, 1)
            outs.append(((a * out[at] + b * o) / total).to(out.dtype))
            lses.append((peak + total[..., 0].log()).masked_fill(~some[..., 0], float("-inf")))
    return torch.cat(outs), torch.cat(lses)
