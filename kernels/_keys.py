"""Keys and values as one flat table, gathered by lists of blocks (plain torch, any device)."""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Cut, block_bounds, per_head


class Keys:
    """Keys and values as one flat table of rows, gathered by block where blocks are equal, else by
    token."""

    def __init__(self, k: Tensor, v: Tensor, cut: Cut, heads: int):
        batch, kv_heads, tokens, _ = k.shape
        self.cut, self.tokens, self.heads = cut, tokens, heads
        self.uniform = cut.offsets is None
        self.blocks, self.dim_v = cut.count(tokens), v.shape[3]
        self.row_bytes = (k.shape[3] + v.shape[3]) * k.element_size()
        start, end = block_bounds(cut, tokens, k.device)
        size = (end - start).clamp(min=0)
        pad = torch.nn.functional.pad
        # entry N stands for "no block": size 0; both [B H, N + 1]
        self.start, self.size = (
            per_head(pad(x, (0, 1)), batch, heads).flatten(0, 1) for x in (start, size)
        )
        stored = self.blocks * cut.size if self.uniform else tokens
        table = (pad(x, (0, 0, 0, stored - tokens)) if stored > tokens else x for x in (k, v))
        self.width = width = cut.size if self.uniform else 1
        self.k, self.v = (
            x.reshape(batch * kv_heads * stored // width, width * x.shape[-1]) for x in table
        )
        head = torch.arange(batch * heads, device=k.device)
        self.base = (head // heads * kv_heads + head % heads // (heads // kv_heads)) * (
            stored // width
        )

    def take(
        self, head: Tensor, ids: Tensor, sizes: Tensor, length: int, need: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Gather [R, length, D] keys and values of blocks [R, C], and where `need` is set their
        positions and their places in the list, [R, length] each.

        Places past a row's own length repeat its first key: what they hold is hidden later.
        """
        rows, position, entry = ids.shape[0], None, None
        step = torch.arange(length, device=ids.device).expand(rows, length)
        if self.uniform:
            ids = ids[:, : -(-length // self.cut.size)]
            place = ids.where(ids < self.blocks, ids[:, :1]).clamp(max=self.blocks - 1)
            at = self.base[head][:, None] + place
            if need:
                entry = (step[0] // self.cut.size).expand(rows, -1)
                inner = torch.arange(self.cut.size, device=ids.device)
                position = (place[..., None] * self.cut.size + inner).flatten(1)[:, :length]
                position = position.clamp(max=self.tokens - 1)
        else:
            ends = sizes.cumsum(-1)
            entry = torch.searchsorted(ends, step.contiguous(), right=True)
            entry = entry.clamp(max=ids.shape[1] - 1)
            first = self.start[head[:, None], ids]
            position = (first - ends + sizes).gather(1, entry) + step
            position = position.where(step < ends[:, -1:], position[:, :1])
            position = position.clamp(0, self.tokens - 1)
            at = self.base[head][:, None] + position
        k, v = (
            x.index_select(0, at.flatten()).view(rows, -1, x.shape[1] // self.width)
            for x in (self.k, self.v)
        )
        return k[:, :length], v[:, :length], position, entry


def attend(
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


def chunks(
    lengths: list[int], per_key: int, limit: int, multiple: int = 1
) -> list[tuple[int, int]]:
    """Cut rows, sorted by falling length, into chunks within the limit, of equal length where that
    is cheap, and of a multiple of some number of rows where the limit has room for it."""
    chunks, at = [], 0
    while at < len(lengths) and lengths[at]:
        fit = max(1, limit // (lengths[at] * per_key))
        fit -= fit % multiple if fit > multiple else 0
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
    out = (a * a_out + b * b_out) / total
    lse = (peak + total[..., 0].log()).masked_fill(~some[..., 0], float("-inf"))
    return out.to(a_out.dtype), lse
