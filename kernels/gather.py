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
from dit_sparse.kernels.contract import Columns, Cut, as_cut, block_bounds, per_head
from torch import Tensor

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
        self, head: Tensor, ids: Tensor, sizes: Tensor, length: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gather [R, length, D] keys and values and their positions [R, length] for block ids [R,
        C]."""
        rows = ids.shape[0]
        if self.uniform:
            place = ids.clamp(max=self.blocks - 1)
            at = self.base[head][:, None] + place
            inner = torch.arange(self.cut.size, device=ids.device)
            position = (place[..., None] * self.cut.size + inner).flatten(1)
        else:
            ends = sizes.cumsum(-1)
            step = torch.arange(length, device=ids.device).expand(rows, length).contiguous()
            entry = torch.searchsorted(ends, step, right=True).clamp(max=ids.shape[1] - 1)
            first = self.start.flatten(0, 1)[head[:, None], ids]
            position = (first - ends + sizes).gather(1, entry) + step
            position = position.clamp(0, self.tokens - 1)
            at = self.base[head][:, None] + position
        k, v = (
            x.index_select(0, at.flatten()).view(rows, -1, x.shape[1] // self.width)
            for x in (self.k, self.v)
        )
        return k[:, :length], v[:, :length], position[:, :length]

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
            while equal < stop and lengths[equal] >= 0.8 * lengths[at]:
                equal += 1
        chunks.append((at, equal))
        at = equal
    return chunks


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, *, q_blocks: Cut | int,
    kv_blocks: Cut | int, columns: Columns | None = None, tail: Tensor | None = None, causal: bool
    = False, scale: float | None = None, scratch_mb: int | None = None,
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
    row = torch.arange(rows, device=device).repeat_interleave(tiles).repeat(batch * heads)

    # lists: [rows, C] ascending ids, N where empty; a short last block thereby comes last
    listed = torch.arange(capacity, device=device) < kv_count[..., None]
    ids = kv_index.long().where(listed, n).sort(-1).values.flatten(0, 2)
    ids = ids if tiles == 1 else ids.repeat_interleave(tiles, 0)
    if causal:
        seen = keys.start.flatten(0, 1)[head[:, None], ids] < (last + (s_kv - s_q))[:, None]
        ids = ids.where(seen, n).sort(-1).values
    sizes = keys.size.flatten(0, 1)[head[:, None], ids]
    length = sizes.sum(-1)

    extra = 0 if columns is None else columns.k.shape[2]
    per_key = (dim + dim_v) * q.element_size()
    limit = (scratch_mb or SCRATCH_MB.get(device.type, SCRATCH_MB["default"])) * 2**20
    if device.type == "cpu":
        length = length.where(last > first, -extra)
        order = length.argsort(dim=0, descending=True, stable=True)
        lengths = length[order].tolist()
    else:
        order = torch.arange(len(length), device=device)
        lengths = [min(capacity * kv_cut.size, s_kv)] * len(length)
    chunks = _chunks(
        [n + extra for n in lengths], per_key if device.type == "cpu" else per_key + 8 * tile, limit
    )

    bias = mask = None
    if columns is not None:
        ck, cv = (per_head(x, batch, heads).flatten(0, 1) for x in (columns.k, columns.v))
        bias = torch.zeros(1, 1, extra, device=device) if columns.bias is None else columns.bias
        bias = per_head(bias, batch, heads).flatten(0, 1)
        mask = (
            None
            if columns.mask is None
            else per_head(columns.mask != 0, batch, heads).flatten(0, 2)
        )
    flat_q = q.reshape(batch * heads * s_q, dim)
    dump = batch * heads * s_q
    outs, lses, places = [], [], []
    for lo, hi in chunks:
        r = order[lo:hi]
        wide = lengths[lo]
        token = first[r][:, None] + torch.arange(tile, device=device)
        inside = token < last[r][:, None]
        place = (head[r] * s_q)[:, None] + token
        x = flat_q.index_select(0, place.where(inside, 0).flatten()).view(hi - lo, tile, dim)
        kk, vv, position = keys.take(head[r], ids[r], sizes[r], wide)
        hidden = None
        if device.type != "cpu" or causal or lengths[hi - 1] != wide:
            empty = torch.arange(wide, device=device) >= length[r][:, None]
            # 0 * nan must not leak from padding
            kk, vv = (y.masked_fill(empty[..., None], 0) for y in (kk, vv))
            hidden = empty[:, None]
            if causal:
                hidden = hidden | (position[:, None] > (token + (s_kv - s_q))[..., None])
        add = None
        if hidden is not None or extra:
            kind = torch.promote_types(q.dtype, torch.float32)
            hidden = (
                torch.zeros(1, 1, wide, dtype=torch.bool, device=device)
                if hidden is None
                else hidden
            )
            add = torch.zeros(hidden.shape, dtype=kind, device=device).masked_fill(
                hidden, float("-inf")
            )
        if extra:
            b = bias[head[r]][:, None].to(add.dtype)
            xk, xv = ck[head[r]], cv[head[r]]
            if mask is not None:
                shown = mask[head[r] * rows + row[r]]
                b = b.masked_fill(~shown[:, None], float("-inf"))
                xk, xv = (y.masked_fill(~shown[..., None], 0) for y in (xk, xv))
            add = torch.cat((add.expand(hi - lo, -1, -1), b.expand(-1, add.shape[1], -1)), -1)
            kk, vv = torch.cat((kk, xk), 1), torch.cat((vv, xv), 1)
        out, lse = _attend(x, kk, vv, add, scale)
        if add is not None:
            none = (add.detach() == float("-inf")).all(-1).expand(-1, tile)
            lse, out = lse.masked_fill(none, float("-inf")), out.masked_fill(none[..., None], 0)
        if tail is not None:
            s = torch.bmm(x.to(b.dtype), xk.to(b.dtype).transpose(1, 2)) * scale + b
            mass = (s - lse.masked_fill(lse.isinf(), 0)[..., None]).exp().sum(-1, keepdim=True)
            matrix = per_head(tail, batch, heads).flatten(0, 1)[head[r]].to(b.dtype)
            out = out + (mass * scale * torch.bmm(x.to(b.dtype), matrix)).to(out.dtype)
        outs.append(out.flatten(0, 1))
        lses.append(lse.flatten().float() if q.dtype != torch.float64 else lse.flatten())
        places.append(place.where(inside, dump).flatten())
    out = q.new_zeros(dump + 1, dim_v)
    lse = torch.full((dump + 1,), float("-inf"), dtype=torch.float32, device=device)
    if outs:
        at = torch.cat(places)
        out, lse = (
            out.index_copy(0, at, torch.cat(outs)),
            lse.index_copy(0, at, torch.cat(lses).float()),
        )
    return out[:-1].view(batch, heads, s_q, dim_v), lse[:-1].view(batch, heads, s_q)
