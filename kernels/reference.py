"""Eager oracles of every public kernel, dense and slow, in float32 or float64 (float64 in ->
float64 math).

Same names and signatures as the public files; the plan becomes a dense mask. For tests and for
reading.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Columns, Cut, as_cut, per_head
from dit_sparse.kernels.lists import dense_mask


def _math(x: Tensor, dtype: torch.dtype | None = None) -> torch.dtype:
    return dtype or (torch.float64 if x.dtype == torch.float64 else torch.float32)


def token_blocks(
    blocks: Cut | int, tokens: int, batch: int, heads: int, device: torch.device
) -> Tensor:
    """Return the block id of every token, int64 [batch, heads, tokens]; N where a token is in no
    block."""
    cut = as_cut(blocks)
    position = torch.arange(tokens, device=device)
    if cut.offsets is None:
        return (position // cut.size).expand(batch, heads, tokens)
    offsets = per_head(cut.offsets.long(), batch, heads).contiguous()
    block = (
        torch.searchsorted(offsets, position.expand(batch, heads, tokens).contiguous(), right=True)
        - 1
    )
    return block.where(block >= 0, offsets.shape[-1] - 1)


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, *, q_blocks: Cut | int,
    kv_blocks: Cut | int, columns: Columns | None = None, tail: Tensor | None = None, row_mask:
    Tensor | None = None, causal: bool = False, scale: float | None = None, math_dtype:
    torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute attention.block_sparse_attention densely; `math_dtype` overrides the arithmetic's
    dtype."""
    batch, heads, s_q, dim = q.shape
    s_kv, dtype = k.shape[2], _math(q, math_dtype)
    scale = dim**-0.5 if scale is None else scale
    x, keys, values = (
        q.to(dtype),
        per_head(k, batch, heads).to(dtype),
        per_head(v, batch, heads).to(dtype),
    )
    row = token_blocks(q_blocks, s_q, batch, heads, q.device)
    col = token_blocks(kv_blocks, s_kv, batch, heads, q.device)
    chosen = dense_mask(kv_count, kv_index, as_cut(kv_blocks).count(s_kv))
    # one more row and column, all false, for tokens that are in no block
    chosen = torch.nn.functional.pad(chosen, (0, 1, 0, 1))
    b = torch.arange(batch, device=q.device)[:, None, None, None]
    h = torch.arange(heads, device=q.device)[None, :, None, None]
    seen = chosen[b, h, row[..., :, None], col[..., None, :]]
    if row_mask is not None:
        rows = torch.nn.functional.pad(per_head(row_mask, batch, heads) != 0, (0, 1))
        seen = seen & rows.gather(3, col[..., None, :].expand(batch, heads, s_q, s_kv))
    if causal:
        last = torch.arange(s_q, device=q.device) + (s_kv - s_q)
        seen = seen & (torch.arange(s_kv, device=q.device) <= last[:, None])
    logits = x @ keys.transpose(-1, -2) * scale
    if columns is not None:
        ck, cv = (
            per_head(columns.k, batch, heads).to(dtype),
            per_head(columns.v, batch, heads).to(dtype),
        )
        extra = x @ ck.transpose(-1, -2) * scale
        if columns.bias is not None:
            extra = extra + per_head(columns.bias, batch, heads).to(dtype)[..., None, :]
        visible = torch.ones(
            batch, heads, chosen.shape[2] - 1, ck.shape[2], dtype=torch.bool, device=q.device
        )
        if columns.mask is not None:
            visible = per_head(columns.mask, batch, heads) != 0
        if columns.index is not None:
            groups = dense_mask(columns.count, columns.index, -(-ck.shape[2] // columns.group))
            visible = groups.repeat_interleave(columns.group, -1)[..., : ck.shape[2]]
        visible = torch.nn.functional.pad(visible, (0, 0, 0, 1))[b[..., 0], h[..., 0], row]
        logits, values = torch.cat((logits, extra), -1), torch.cat((values, cv), -2)
        seen = torch.cat((seen, visible), -1)
    logits = logits.masked_fill(~seen, float("-inf"))
    lse = torch.logsumexp(logits, -1, keepdim=True)
    p = (logits - lse.masked_fill(lse.isinf(), 0)).exp()
    # keys that no query sees may hold anything
    values = values.masked_fill(~seen.any(-2)[..., None], 0)
    out = p @ values
    if tail is not None:
        mass = p[..., s_kv:].sum(-1, keepdim=True)
        out = out + mass * scale * (x @ per_head(tail, batch, heads).to(dtype))
    return out.to(q.dtype if math_dtype is None else dtype), lse[..., 0].to(
        dtype if dtype == torch.float64 else torch.float32
    )


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor | None, kv_index: Tensor, *, page: int,
    choice: Tensor | None = None, table: Tensor | None = None, lengths: Tensor | None = None, scale:
    float | None = None, math_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute decode.decode_attention densely over every page of every sequence."""
    (batch, heads, _, dim), group = q.shape, q.shape[1] // k.shape[1]
    if table is not None:
        # [B, N, Hkv, page, D] -> [B, Hkv, N * page, D]
        k, v = (x[table.long()].transpose(1, 2).flatten(2, 3) for x in (k, v))
    tokens, device = k.shape[2], q.device
    n = -(-tokens // page)
    if kv_count is None:
        kv_count = kv_index.new_full(kv_index.shape[:3], kv_index.shape[3])
    chosen = dense_mask(kv_count, kv_index, n).repeat_interleave(group, 1)
    if choice is not None:
        chosen = chosen & (choice != 0)[:, :, None]
    seen = chosen.repeat_interleave(page, 3)[..., :tokens]
    if lengths is not None:
        ends = lengths[:, None, None, None]
        seen = seen & (torch.arange(tokens, device=device) < ends)
        # what stands behind a sequence may be anything
        k, v = (x.masked_fill((torch.arange(tokens, device=device) >= ends).mT, 0) for x in (k, v))
    dtype = _math(q, math_dtype)
    keys, values = (per_head(x, batch, heads).to(dtype) for x in (k, v))
    scale = dim**-0.5 if scale is None else scale
    logits = (q.to(dtype) @ keys.mT * scale).masked_fill(~seen, float("-inf"))
    lse = torch.logsumexp(logits, -1)
    p = (logits - lse.masked_fill(lse.isinf(), 0)[..., None]).exp()
    out = p @ values
    lse = lse.to(dtype if dtype == torch.float64 else torch.float32)
    return out.to(q.dtype if math_dtype is None else dtype), lse


def page_scores(q: Tensor, k: Tensor, *, page: int) -> Tensor:
    """Compute decode.page_scores from the means of all pages."""
    dtype = _math(q)
    mean = q.to(dtype).unflatten(1, (k.shape[1], -1)).mean(2)
    return mean @ pool_blocks(k, page, dtype=dtype).mT


def pool_blocks(
    x: Tensor,
    blocks: Cut | int,
    order: Tensor | None = None,
    *,
    reduce: str = "mean",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute pool.pool_blocks with one scatter-add over tokens."""
    if order is not None:
        x = permute_tokens(x, order)
    batch, heads, tokens, dim = x.shape
    n = as_cut(blocks).count(tokens)
    block = token_blocks(blocks, tokens, batch, heads, x.device)[..., None]
    value = x.to(_math(x)).masked_fill(block == n, 0)
    total = value.new_zeros(batch, heads, n + 1, dim).scatter_add(2, block.expand_as(x), value)[
        :, :, :n
    ]
    size = total.new_zeros(batch, heads, n + 1, 1).scatter_add(
        2, block, torch.ones_like(value[..., :1])
    )[:, :, :n]
    return (total / size.clamp(min=1) if reduce == "mean" else total).to(dtype or x.dtype)


def block_covariances(k: Tensor, v: Tensor, blocks: Cut | int) -> tuple[Tensor, Tensor]:
    """Compute pool.block_covariances by materialising every block's matrix H_j."""
    dtype = _math(k)
    batch, heads, tokens, _ = k.shape
    n, kbar = as_cut(blocks).count(tokens), pool_blocks(k, blocks, dtype=dtype)
    block = token_blocks(blocks, tokens, batch, heads, k.device)
    member = torch.nn.functional.one_hot(block, n + 1)[..., :n].to(dtype)
    centred = k.to(dtype)[:, :, :, None] - kbar[:, :, None]
    outer = torch.einsum("bhsn,bhsnd,bhse->bhnde", member, centred, v.to(dtype))
    return outer.sum(2), outer.flatten(3).norm(dim=-1)


def permute_tokens(x: Tensor, order: Tensor, *, inverse: bool = False) -> Tensor:
    """Compute permute.permute_tokens with one gather."""
    order = per_head(order.long(), x.shape[0], x.shape[1])
    if inverse:
        order = order.argsort(-1)
    return x.gather(2, order[..., None].expand(*order.shape, x.shape[-1]))


def pack_lists(block_mask: Tensor, capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """Compute lists.pack_lists with one stable sort."""
    capacity = block_mask.shape[-1] if capacity is None else capacity
    index = (block_mask == 0).to(torch.int8).argsort(dim=-1, stable=True)[..., :capacity]
    return (block_mask != 0).sum(-1).clamp(max=capacity).int(), index.int()
