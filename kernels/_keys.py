"""Keys and values as one flat table, gathered by lists of blocks (plain torch, any device)."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Cut, block_bounds, per_head

# blocks of unlike sizes are padded to the largest where that adds no more than this
SLACK = 1.25
# logits of one tile: up to here, in bytes, a CPU's cache holds them between two matrix products,
# which are faster than PyTorch's fused kernel on few queries; beyond it the kernel is
LOGITS = 1 << 20


def is_even(cut: Cut, tokens: int) -> bool:
    """Tell, from shapes alone, whether padding all blocks to the largest adds few tokens."""
    return cut.offsets is None or cut.count(tokens) * cut.size <= SLACK * tokens


class Scratch:
    """Memory that the chunks of a call use one after the other: it stays in the cache."""

    def __init__(self) -> None:
        self.flat: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Return memory of the dtype of `like`; what it holds is lost at the next call for it."""
        size = prod(shape)
        if name not in self.flat or len(self.flat[name]) < size:
            self.flat[name] = like.new_empty(size)
        return self.flat[name][:size].view(shape)


class Keys:
    """Keys and values as one flat table of rows, gathered by block where blocks are equal or
    nearly so, else by token.

    start, size, room: [B H, N + 1] first token, tokens, and tokens with padding of each block;
    entry N stands for "no block", of size 0. shade: [rows of the table, size] 0 at the tokens of a
    block and -inf at its padding, None where no listed token is padding.
    """

    def __init__(self, k: Tensor, v: Tensor, cut: Cut, heads: int):
        batch, kv_heads, tokens, _ = k.shape
        self.cut, self.tokens, self.heads = cut, tokens, heads
        self.blocks, self.dim_v = cut.count(tokens), v.shape[3]
        self.row_bytes = (k.shape[3] + v.shape[3]) * k.element_size()
        bounds = block_bounds(cut, tokens, k.device)
        pad = torch.nn.functional.pad
        size = (bounds[1] - bounds[0]).clamp(min=0)
        self.start, self.size = (
            per_head(pad(x, (0, 1)), batch, heads).flatten(0, 1) for x in (bounds[0], size)
        )
        self.room, self.shade, uniform = self.size, None, cut.offsets is None
        # elsewhere lists are as long as their capacity, which padding would stretch
        padded = cut.offsets is not None and k.device.type == "cpu" and is_even(cut, tokens)
        padded = padded and bounds[0].shape[1] in (1, kv_heads)
        self.whole = uniform or padded
        self.width = width = cut.size if self.whole else 1
        stored = self.blocks * width if self.whole else tokens
        if padded:
            inner = torch.arange(width, device=k.device)
            start, size = (per_head(x, batch, kv_heads)[..., None] for x in (bounds[0], size))
            outside = (inner >= size).flatten(0, 2)
            wide = torch.promote_types(k.dtype, torch.float32)
            self.shade = k.new_zeros(outside.shape, dtype=wide).masked_fill(outside, float("-inf"))
            self.room = torch.full_like(self.size, width)
            self.room[:, -1] = 0
            place = (start + inner).clamp(max=tokens - 1).flatten(2)
            table = (_tokens(x, place) for x in (k, v))
        else:
            table = (pad(x, (0, 0, 0, stored - tokens)) if stored > tokens else x for x in (k, v))
        self.k, self.v = (
            x.reshape(batch * kv_heads * stored // width, width * x.shape[-1]) for x in table
        )
        head = torch.arange(batch * heads, device=k.device)
        self.base = (head // heads * kv_heads + head % heads // (heads // kv_heads)) * (
            stored // width
        )

    def rows(self, head: Tensor, ids: Tensor) -> Tensor:
        """Return the table's rows of whole blocks, [R, C]; an end of a list repeats its start."""
        place = ids.where(ids < self.blocks, ids[:, :1]).clamp(max=self.blocks - 1)
        return self.base[head][:, None] + place

    def take(self, at: Tensor, scratch: Scratch | None) -> tuple[Tensor, Tensor]:
        """Gather [R, L, D] keys and [R, L, Dv] values of the table's rows [R, C], L = C width."""
        flat = at.flatten()
        k, v = (
            torch.index_select(x, 0, flat, out=scratch.take(name, x, len(flat), x.shape[1]))
            if scratch
            else x.index_select(0, flat)
            for name, x in (("k", self.k), ("v", self.v))
        )
        return k.view(len(at), -1, k.shape[1] // self.width), v.view(len(at), -1, self.dim_v)

    def places(
        self, head: Tensor, ids: Tensor, sizes: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """Return the positions of the tokens of blocks [R, C] and their places in the list,
        [R, length] each.

        Places past a row's own length repeat its first key: what they hold is hidden later.
        """
        step = torch.arange(length, device=ids.device).expand(len(ids), length)
        if self.whole:
            ids = ids[:, : -(-length // self.width)]
            place = ids.where(ids < self.blocks, ids[:, :1]).clamp(max=self.blocks - 1)
            first = self.start[head[:, None], place][..., None]
            position = (first + torch.arange(self.width, device=ids.device)).flatten(1)
            return position[:, :length].clamp(max=self.tokens - 1), step // self.width
        ends = sizes.cumsum(-1)
        entry = torch.searchsorted(ends, step.contiguous(), right=True)
        entry = entry.clamp(max=ids.shape[1] - 1)
        first = self.start[head[:, None], ids]
        position = (first - ends + sizes).gather(1, entry) + step
        position = position.where(step < ends[:, -1:], position[:, :1])
        return position.clamp(0, self.tokens - 1), entry


def _tokens(x: Tensor, place: Tensor) -> Tensor:
    """Return x [B, H, S, D] at places [B, H, L], as rows [B H L, D]."""
    base = torch.arange(place.shape[0] * place.shape[1], device=x.device) * x.shape[2]
    at = base[:, None] + place.flatten(0, 1)
    return x.reshape(-1, x.shape[3]).index_select(0, at.flatten())


def scratch_for(*tensors: Tensor | None) -> Scratch | None:
    """Return memory to reuse on a CPU where no gradient is wanted, else None."""
    given = [x for x in tensors if x is not None]
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    return None if wanted or given[0].device.type != "cpu" else Scratch()


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, scratch: Scratch | None
) -> tuple[Tensor, Tensor]:
    """Attend q [R, T, D] to k, v [R or 1, L, D] with an additive float bias [R, 1 or T, L] or
    None."""
    rows, tile, length, kind = *q.shape[:2], k.shape[1], q.dtype
    wide = torch.promote_types(q.dtype, torch.float32)
    fits = q.dtype == wide and tile * length * q.element_size() <= LOGITS
    if scratch and not fits and q.shape[-1] == v.shape[-1]:
        mask = None if bias is None else bias[:, None].expand(rows, 1, tile, length)
        # shared keys have a stride of 0
        k, v = (x[:, None].expand(rows, -1, -1, -1) for x in (k, v))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, None], k, v, attn_mask=mask, scale=scale
        )
        return out[:, 0], lse[:, 0]
    if len(k) < rows:
        flat = None if bias is None else bias.expand(rows, tile, length).reshape(1, -1, length)
        out, lse = attend(q.reshape(1, rows * tile, -1), k, v, flat, scale, scratch)
        return out.view(rows, tile, -1), lse.view(rows, tile)
    q, k, v = (x.to(wide) for x in (q, k, v))
    if scratch:
        s = scratch.take("logits", q, rows, tile, length)
        torch.baddbmm(s if bias is None else bias, q, k.mT, beta=int(bias is not None),
                      alpha=scale, out=s)  # fmt: skip
    else:
        s = torch.bmm(q, k.mT) * scale
        s = s if bias is None else s + bias
    peak = s.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(wide).min)
    p = s.sub_(peak).exp_() if scratch else (s - peak).exp()
    total = p.sum(-1, keepdim=True)
    live = total > 0
    total = total.where(live, 1)
    return (torch.bmm(p, v) / total).to(kind), (peak + total.log()).squeeze(-1)


def chunks(lengths: list[int], per_key: int, limit: int, threads: int = 1) -> list[tuple[int, int]]:
    """Cut rows, sorted by falling length, into chunks within the limit (but one row per thread),
    of equal length where that is cheap."""
    chunks, at = [], 0
    while at < len(lengths) and lengths[at]:
        fit = max(1, limit // (lengths[at] * per_key))
        # no thread goes without
        fit = max(threads, fit - fit % threads)
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


def merge(a_out: Tensor, a_lse: Tensor, b_out: Tensor, b_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention over two disjoint sets of keys from those over each, in a_out's dtype.

    a_out, b_out: [..., Dv]; a_lse, b_lse: [...], -inf where nothing was seen.
    """
    peak = torch.maximum(a_lse, b_lse).detach()
    peak = peak.masked_fill(peak.isinf(), 0)
    a, b = (a_lse - peak).exp()[..., None], (b_lse - peak).exp()[..., None]
    total = a + b
    some = total > 0
    total = total.where(some, 1)
    out = torch.lerp(a_out.to(b_out.dtype), b_out, (b / total).to(b_out.dtype))
    lse = (peak + total[..., 0].log()).masked_fill(~some[..., 0], float("-inf"))
    return out.to(a_out.dtype), lse
