"""Attention in which every single query chooses its key blocks, computed key block by key block.

    out_i = sum_{j chosen by i} e^{s q_i k_j} v_j / Z_i,    lse_i = log Z_i

A tile of neighbouring queries would visit the union of their choices; here the queries that chose
a key block are gathered instead, and no product is computed in vain but those of a list's last
tile. Lists of queries per key block are made on the device. Key block j belongs to lane j % lanes;
launch t visits blocks t * lanes ... t * lanes + lanes - 1, each folded into its own lane's state
of the query, so that no two programs of a launch touch one state; the lanes are merged at the
end. The order of every sum is fixed: equal calls give equal bits. No sync, no shape that depends
on data. Used by VMoBA. The kernels are in _routed.py.

Price beside the chosen products, by arithmetic, for P chosen (query, block) pairs:
- states: a visit reads and writes one float32 row and its lse, but the first in a lane writes
  only and the merge reads: P (8 Dv + 8) bytes in all. 12 heads, 32,760 tokens, 72 blocks, d 128,
  density .1: 2.8 M pairs, 2.9 GB, .8 ms at 3.6 TB/s; 6 heads of 118,800 tokens: 5.1 M pairs,
  5.3 GB, 1.5 ms. A block of n keys takes 4 Dv n operations a visit, n / 2 for each such byte: from
  about 300 keys a block on, these take an H200 longer than the bytes, and hide part of them
- queries: 2 D bytes a pair (2-byte types), a quarter of the above again
- lists: N bytes a query read twice, 4 bytes a pair written and read
- launches: ceil(N / lanes) + 5 for each group of heads. 2^20 states make 3 waves of programs on
  132 multiprocessors, two tiles of 128 each, at density .1; thus lanes = 3 and 2 in the examples
Memory: 4 Dv bytes a state, at most 2^21 states (or one head); 4 S N bytes of lists a head, at
most 256 MiB (or one head): more heads are done in groups, one after the other.
Limits: as block_sparse.py; at most MOST_BLOCKS key blocks, beyond which launches dominate; no
columns, no tail.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dit_sparse.kernels import _tune
from dit_sparse.kernels._launch import dense_rows, head_offsets
from dit_sparse.kernels._routed import list_kernel, merge_kernel, visit_kernel
from dit_sparse.kernels.block_sparse import _device, describe, is_interpreted
from dit_sparse.kernels.contract import Cut, allocate, as_cut, as_scale, check, per_head
from dit_sparse.kernels.lists import dense_mask
from dit_sparse.kernels.tiling import mean_size

MOST_BLOCKS = 512
STATES = 1 << 20
LIST_BYTES = 1 << 28
# programs for each list: one for so many tiles of all queries, that few are without work
SHARE = 8


def head_groups(heads: int, tokens: int, blocks: int) -> tuple[int, int]:
    """Return (heads done at once, lanes) for so many heads of all samples together."""
    most = max(1, min(LIST_BYTES // (4 * tokens * blocks), 2 * STATES // tokens))
    some = -(-heads // -(-heads // most))
    return some, max(1, min(blocks, 8, -(-STATES // (some * tokens))))


def _check(
    q: Tensor, k: Tensor, v: Tensor, row_mask: Tensor, cut: Cut, lists: tuple[Tensor, Tensor, int]
    | None, scale: float,
) -> None:  # fmt: skip
    """Raise one line naming the argument if the call breaks the contract or a limit."""
    if lists is None:
        none = torch.empty(*q.shape[:2], 1, 0, dtype=torch.int32, device=q.device)
        lists = none.new_empty(none.shape[:3]), none, q.shape[2]
    check(q, k, v, *lists[:2], Cut(lists[2]), cut, None, None, row_mask, scale)
    if q.device.type != "cuda" and not is_interpreted():
        got = f"{q.device.type} (and TRITON_INTERPRET=1 is not set)"
        raise RuntimeError(f"routed_attention needs a CUDA tensor, got {got}")
    if q.dtype == torch.float64 or max(q.shape[3], v.shape[3]) > 256:
        got = f"{q.shape[3]}, {v.shape[3]}, {q.dtype}"
        raise ValueError(f"q and v must have head dims up to 256, not be float64, got {got}")
    if cut.count(k.shape[2]) > MOST_BLOCKS:
        got = cut.count(k.shape[2])
        raise ValueError(f"kv_blocks must cut at most {MOST_BLOCKS} blocks, got {got}")


def routed_attention(
    q: Tensor, k: Tensor, v: Tensor, row_mask: Tensor, kv_blocks: Cut | int, *, lists:
    tuple[Tensor, Tensor, int] | None = None, causal: bool = False, scale: float | None = None,
    config: _tune.Config | None = None, tma: bool | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attend each query to the key blocks it chooses.

    q: [B, H, Sq, D], k: [B, Hkv, Skv, D], v: [B, Hkv, Skv, Dv], all finite
    row_mask: bool/int8 [B, H or 1, Sq, N], nonzero = the query sees the block
    lists: None, or (kv_count [B, H, M], kv_index [B, H, M, C], tokens of a query block): a query
        sees those of its blocks alone that its query block lists
    causal: query i sees keys j <= i + Skv - Sq; scale: default D ** -0.5
    config, tma: override the table (benchmarks)
    returns: out [B, H, Sq, Dv] in q's dtype, lse [B, H, Sq] float32 (natural log); a query that
        sees nothing gives 0 and -inf

    >>> x = torch.randn(1, 2, 256, 64, device="cuda")
    >>> mine = torch.rand(1, 2, 256, 4, device="cuda") < 0.5
    >>> out, lse = routed_attention(x, x, x, mine, 64)
    """
    cut = as_cut(kv_blocks)
    batch, heads, s_q, dim = q.shape
    kv_heads, s_kv, dim_v, blocks = k.shape[1], k.shape[2], v.shape[3], cut.count(k.shape[2])
    scale = as_scale(scale, dim)
    _check(q, k, v, row_mask, cut, lists, scale)
    has_tma, big, nvidia = _device(q.device.index or 0) if q.is_cuda else (True, True, True)
    head_dim, head_dim_v = _tune.power_of_2(dim), _tune.power_of_2(dim_v)
    uniform = cut.offsets is None
    config = config or _tune.choose(
        max(head_dim, head_dim_v),
        s_q,
        _tune.key_size(cut.size, mean_size(cut, s_kv)),
        q.element_size(),
        big,
        nvidia,
        uniform and not causal,
    )
    q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
    mask = dense_rows(per_head(row_mask, batch, heads)).view(torch.int8)
    kept, q_size, offsets = mask, s_q, head_offsets(cut, q)
    if lists is not None:
        kept, q_size = dense_mask(*lists[:2], blocks).contiguous().view(torch.int8), lists[2]
    # the bound of the sizes stands in no program where offsets tell them
    kv_size = cut.size if uniform else 1
    k_desc = describe(k, config.block_n, head_dim) if has_tma and tma is not False else None
    v_desc = describe(v, config.block_n, head_dim_v) if k_desc is not None else None
    use_tma = v_desc is not None
    k_desc = k_desc if use_tma else None

    some, lanes = head_groups(batch * heads, s_q, blocks)
    block_j, parts = min(64, _tune.power_of_2(blocks)), triton.cdiv(s_q, 64)
    tiles = triton.cdiv(s_q, config.block_m)
    programs = triton.cdiv(tiles, SHARE)
    f32 = {"device": q.device, "dtype": torch.float32}
    state = torch.empty(lanes, some, s_q, dim_v, **f32)
    height = torch.empty(lanes, some, s_q, **f32)
    count = torch.empty(some, blocks, parts, device=q.device, dtype=torch.int32)
    index = torch.empty(some, blocks, s_q, device=q.device, dtype=torch.int32)
    out, lse = allocate(q, dim_v)
    for first in range(0, batch * heads, some):
        here = min(some, batch * heads - first)
        height.fill_(float("-inf"))
        ends = count
        for is_count in (True, False):
            list_kernel[(here * parts, triton.cdiv(blocks, block_j))](
                mask, kept, offsets, ends, index, *mask.stride()[:3], *offsets.stride()[:2], heads,
                first, kept.shape[2], s_q, s_kv, blocks, parts, Q_SIZE=q_size, KV_SIZE=kv_size,
                BLOCK_M=64, BLOCK_J=block_j, HAS_LISTS=lists is not None, IS_UNIFORM=uniform,
                IS_CAUSAL=causal, IS_COUNT=is_count, num_warps=4,
            )  # fmt: skip
            ends = ends.cumsum(-1, dtype=torch.int32) if is_count else ends
        for turn in range(triton.cdiv(blocks, lanes)):
            visit_kernel[(lanes * here * programs,)](
                q, k, v, state, height, k_desc, v_desc, offsets, ends, index, *q.stride()[:3],
                *k.stride()[:3], *v.stride()[:3], *offsets.stride()[:2], heads, heads // kv_heads,
                first, here, some, turn, lanes, blocks, parts, s_q, s_kv, scale, programs, DIM=dim,
                DIM_V=dim_v, HEAD_DIM=head_dim, HEAD_DIM_V=head_dim_v, KV_SIZE=kv_size,
                BLOCK_M=config.block_m, BLOCK_N=config.block_n, USE_TMA=use_tma,
                IS_UNIFORM=uniform, IS_CAUSAL=causal, PRECISION=config.precision,
                num_warps=config.num_warps, num_stages=config.num_stages,
            )  # fmt: skip
        merge_kernel[(here * triton.cdiv(s_q, 32),)](
            state, height, out, lse, *out.stride()[:3], heads, first, some, lanes, s_q,
            triton.cdiv(s_q, 32), DIM_V=dim_v, HEAD_DIM_V=head_dim_v, BLOCK_M=32, num_warps=4,
        )  # fmt: skip
    return out, lse
