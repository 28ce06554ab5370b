"""Rectified attention on block means: the map, its error estimate, and what they do to the output.

    share_ij = c_j e^{s q_i k_j} / Z_i,    Z_i = sum_j c_j e^{s q_i k_j} + sum_t e^{s q_i k_t}
    out_x    = gate_i out_x + shift_i      for every query x of block i

q_i and k_j are means of blocks of video tokens, c_j counts the real tokens of block j, k_t are the
keys of the single text tokens. Users: rectified. The Triton passes are in deviation.py.
Accumulation in float32, float64 for float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Cut, as_cut, check_cut, per_head
from dit_sparse.kernels.permute import rows_at
from dit_sparse.kernels.pool import block_ids, pick, pool_blocks
from dit_sparse.kernels.scores import pooled_scores


class PooledMap(NamedTuple):
    """Attention between block means.

    share: [B, H, M, N], a row sums to 1 less the share of the text. q: [B, H, M, D], k: [B, H, N,
    D] means; q_spread, k_spread: their mean absolute deviations, None unless asked for.
    """

    share: Tensor
    q: Tensor
    k: Tensor
    q_spread: Tensor | None
    k_spread: Tensor | None


def block_spread(
    x: Tensor, blocks: Cut | int, order: Tensor | None = None, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return each block's mean and, channel by channel, its mean absolute deviation from it.

    x: [B, H, S, D]; blocks: block size or Cut, of the T tokens x[order] where an integer order [B
    or 1, H or 1, T] is given; both results [B, H, N, D], float32 or wider. One read of x in
    Triton, two in torch.

    >>> [t.flatten().tolist() for t in block_spread(torch.arange(4.0).view(1, 1, 4, 1), 2)]
    [[0.5, 2.5], [0.5, 0.5]]
    """
    cut, wide = as_cut(blocks), torch.promote_types(x.dtype, torch.float32)
    check_cut("blocks", cut, x.shape[0], (x.shape[1],))
    if pick(x, impl, limit=256) == "triton":
        from dit_sparse.kernels import deviation

        return deviation.block_spread(x, cut, order)
    x = x if order is None else rows_at(x, order)
    mean = pool_blocks(x, cut, dtype=wide, impl="torch")
    # tokens in no block are pooled nowhere, whatever their neighbour here
    block = block_ids(cut, x).clamp(max=mean.shape[2] - 1)[..., None].expand_as(x)
    far = (x.to(wide) - mean.gather(2, block)).abs()
    return mean, pool_blocks(far, cut, impl="torch")


def pooled_map(
    q: Tensor,
    k: Tensor,
    q_blocks: Cut,
    kv_blocks: Cut,
    q_tokens: int,
    kv_tokens: int,
    *,
    q_order: Tensor | None = None,
    spread: bool = False,
    scale: float | None = None,
    impl: str = "auto",
) -> PooledMap:
    """Return the attention between the block means of the video tokens, text keys isolated.

    q: [B, H, S, D], k: [B, Hkv, Skv, D]; the first q_tokens and kv_tokens are video and cut by
    q_blocks and kv_blocks, the keys behind them are text and stay single. q_order: integer [B or 1,
    H or 1, S], the place in q of each query. spread: also return the mean absolute deviations.
    """
    batch, heads = q.shape[:2]
    wide = torch.promote_types(q.dtype, torch.float32)
    order, q_spread, k_spread = None, None, None
    queries, keys = q[:, :, :q_tokens], k[:, :, :kv_tokens]
    if q_order is not None:
        queries, order = q, q_order[..., :q_tokens]
    if spread:
        rows, q_spread = block_spread(queries, q_blocks, order, impl=impl)
        cols, k_spread = block_spread(keys, kv_blocks, impl=impl)
        k_spread = per_head(k_spread, batch, heads)
    else:
        rows = pool_blocks(queries, q_blocks, order, dtype=wide, impl=impl)
        cols = pool_blocks(keys, kv_blocks, dtype=wide, impl=impl)
    text = k[:, :, kv_tokens:] if kv_tokens < k.shape[2] else None
    share = pooled_scores(
        rows, cols, scale=scale, cut=kv_blocks, tokens=kv_tokens, text=text, softmax=True, impl=impl
    )
    return PooledMap(share, rows, per_head(cols, batch, heads), q_spread, k_spread)


def trusted(pooled: PooledMap, *, bound: bool = False) -> Tensor:
    """Return where the product of the means outweighs what pooling may lose, bool [B, H, M, N].

    |q_i k_j| > |a_i k_j| + |q_i a_j|, a the mean absolute deviations. The right side adds signed
    products, which may cancel; bound=True takes a_i |k_j| + |q_i| a_j, which bounds the mean first
    order error |(q - q_i) k_j + q_i (k - k_j)|.
    """
    q, k, q_spread, k_spread = pooled.q, pooled.k, pooled.q_spread, pooled.k_spread
    if q_spread is None or k_spread is None:
        raise ValueError("pooled must be a map made with spread=True")
    gain = (q @ k.mT).abs()
    if bound:
        return gain > q_spread @ k.abs().mT + q.abs() @ k_spread.mT
    return gain > (q_spread @ k.mT).abs() + (q @ k_spread.mT).abs()


def gate_blocks(
    out: Tensor,
    gate: Tensor,
    shift: Tensor,
    blocks: Cut | int,
    tokens: int,
    order: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """Return gate_i * out + shift_i on the tokens of each block i; Triton overwrites `out`.

    out: [B, H, S, Dv], the first `tokens` of which are cut by `blocks`; the others stay. gate:
    [B, H, M]; shift: [B, H, M, Dv]. order: integer [B or 1, H or 1, S], the place in `out` of each
    token; None: as they are cut.
    """
    cut, head = as_cut(blocks), out[:, :, :tokens]
    if order is not None:
        order = order[..., :tokens]
    check_cut("blocks", cut, out.shape[0], (out.shape[1],))
    if out.stride(-1) == 1 and pick(out, impl, gate, shift, limit=1 << 30) == "triton":
        from dit_sparse.kernels import deviation

        deviation.gate_blocks(head if order is None else out, gate, shift, cut, order)
        return out
    if order is not None:
        head = rows_at(out, order)
    block = block_ids(cut, head)
    # one more block that changes nothing, for tokens that are in no block
    factor = torch.nn.functional.pad(gate, (0, 1), value=1.0).gather(2, block)[..., None]
    addend = torch.nn.functional.pad(shift, (0, 0, 0, 1))
    addend = addend.gather(2, block[..., None].expand(*block.shape, out.shape[3]))
    head = torch.addcmul(addend, head.to(gate.dtype), factor).to(out.dtype)
    if order is not None:
        return out.scatter(2, order.long()[..., None].expand_as(head), head)
    return head if tokens == out.shape[2] else torch.cat((head, out[:, :, tokens:]), 2)
