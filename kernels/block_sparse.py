"""Portable Triton forward pass of block-sparse attention (online softmax in log2 units).

    out = ( sum_kept e^{s qk} v + sum_columns e^{s qk + bias} v ) / Z + (column mass / Z) s q T,
    lse = log Z

q [B, H, Sq, D], k/v [B, Hkv, Skv, D/Dv], lists kv_count [B, H, M], kv_index [B, H, M, C]; see
attention.py.
Users: every method, wherever hopper.py does not run. The kernels are in _attend.py, their loops in
_steps.py.
Limits: forward only, head dims up to 256, no float64; ids must be in range (they are not checked
on the device).
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dit_sparse.kernels import _tune
from dit_sparse.kernels._attend import attend_kernel
from dit_sparse.kernels.contract import Columns, Cut, allocate, as_cut, per_head
from dit_sparse.kernels.passes import column_terms
from dit_sparse.kernels.tables import query_table
from dit_sparse.kernels.tiling import mean_size


@functools.cache
def _device(index: int) -> tuple[bool, bool, bool]:
    """Return (has tensor-descriptor hardware, has over 200 KiB of shared memory, is NVIDIA)."""
    nvidia = torch.version.hip is None
    major = torch.cuda.get_device_capability(index)[0]
    return nvidia and major >= 9, nvidia and major in (9, 10), nvidia


def is_interpreted() -> bool:
    """Tell whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 at its import)."""
    return not isinstance(attend_kernel, triton.runtime.JITFunction)


def describe(x: Tensor, block: int, head_dim: int) -> TensorDescriptor | None:
    """Return a tensor descriptor over x [B, H, S, D] in place, or None if alignment forbids it."""
    strides = [x.stride(i) if x.shape[i] > 1 else 16 * x.shape[-1] for i in range(3)]
    aligned = x.data_ptr() % 16 == 0 and all(
        s > 0 and s * x.element_size() % 16 == 0 for s in strides
    )
    if not aligned:
        return None
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, block, head_dim])


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, *, q_blocks: Cut | int,
    kv_blocks: Cut | int, columns: Columns | None = None, tail: Tensor | None = None, row_mask:
    Tensor | None = None, q_order: Tensor | None = None, causal: bool = False, scale: float | None
    = None, config: _tune.Config | None = None, tma: bool | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the kernel; arguments as in attention.py, `config` and `tma` override the table
    (benchmarks)."""
    batch, heads, s_q, dim = q.shape
    kv_heads, s_kv, dim_v = k.shape[1], k.shape[2], v.shape[3]
    q_cut, kv_cut = as_cut(q_blocks), as_cut(kv_blocks)
    if q.device.type != "cuda" and not is_interpreted():
        got = f"{q.device.type} (and TRITON_INTERPRET=1 is not set)"
        raise RuntimeError(f"impl='triton' needs a CUDA tensor, got {got}")
    if q.dtype == torch.float64 or max(dim, dim_v) > 256:
        raise ValueError(
            f"impl='triton' takes head dims up to 256 and no float64, got {dim}, {dim_v}, {q.dtype}"
        )
    if row_mask is not None and columns is None and q_cut.offsets is None and config is None:
        # block by block over the queries that chose it: neighbours need not agree
        from dit_sparse.kernels.routed import MOST_BLOCKS, routed_attention

        if kv_cut.count(s_kv) <= MOST_BLOCKS:
            lists = kv_count, kv_index, q_cut.size
            return routed_attention(
                q, k, v, row_mask, kv_cut, lists=lists, causal=causal, scale=scale, tma=tma
            )
    has_tma, big, nvidia = _device(q.device.index or 0) if q.is_cuda else (True, True, True)
    head_dim, head_dim_v = _tune.power_of_2(dim), _tune.power_of_2(dim_v)
    config = config or _tune.choose(
        max(head_dim, head_dim_v),
        _tune.query_size(q_cut.size, mean_size(q_cut, s_q)),
        _tune.key_size(kv_cut.size, mean_size(kv_cut, s_kv)),
        q.element_size(),
        big,
        nvidia,
        kv_cut.offsets is None and not causal and row_mask is None,
    )
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out, lse = allocate(q, dim_v)
    q_off = kv_off = table = kv_index
    rows, q_size, kv_size = kv_count.shape[2], q_cut.size, kv_cut.size
    kv_count, kv_index = kv_count.contiguous(), kv_index.contiguous()
    tiles = rows * -(-q_size // config.block_m)
    has_table = q_cut.offsets is not None and q_size > config.block_m
    if q_cut.offsets is not None:
        q_off = per_head(q_cut.offsets.contiguous(), batch, heads)
        # tokens outside every block
        out.zero_()
        lse.fill_(float("-inf"))
        # the bound of the sizes stands in no program then, so that it may differ at each call
        q_size = config.block_m
    if has_table:
        table = query_table(q_off, kv_count, s_q, config.block_m)
        tiles = (table.numel() - 1) // (2 * batch * heads)
    if kv_cut.offsets is not None:
        kv_off = per_head(kv_cut.offsets.contiguous(), batch, heads)
        kv_size = config.block_n
    uniform, chosen = kv_cut.offsets is None, row_mask is not None
    has_full = not chosen and uniform and kv_size % config.block_n == 0 and s_kv >= kv_size
    # every block within one tile: a loop of its own, for the walk over unequal blocks is slower
    single = not (has_full or causal or chosen) and kv_cut.size <= config.block_n
    partial = not (single or chosen) and (causal or not has_full or s_kv % kv_size != 0)
    k_desc = describe(k, config.block_n, head_dim) if has_tma and tma is not False else None
    v_desc = describe(v, config.block_n, head_dim_v) if k_desc is not None else None
    use_tma = v_desc is not None
    ck, cv, terms, t, cc, ci, choice = k, v, lse, k, kv_count, kv_index, q
    order = kv_count if q_order is None else per_head(q_order.contiguous(), batch, heads)
    if row_mask is not None:
        choice = per_head(row_mask, batch, heads)
        choice = (choice if choice.stride(-1) == 1 else choice.contiguous()).view(torch.int8)
    ck_desc = cv_desc = tail_desc = None
    if columns is not None:
        ck, cv = (x if x.stride(-1) == 1 else x.contiguous() for x in (columns.k, columns.v))
        terms = column_terms(columns, heads, rows, config.block_c)
        if columns.count is not None and columns.index is not None:
            cc, ci = columns.count.contiguous(), columns.index.contiguous()
        else:
            ck_desc = describe(ck, config.block_c, head_dim) if use_tma else None
            cv_desc = describe(cv, config.block_c, head_dim_v) if ck_desc is not None else None
            use_tma = cv_desc is not None
    if tail is not None:
        t = tail.to(q.dtype).contiguous()
        if use_tma and q.element_size() == 2 and max(head_dim, head_dim_v) <= 128:
            tail_desc = describe(t, head_dim, head_dim_v)
    descriptors = (k_desc, v_desc, ck_desc, cv_desc, tail_desc) if use_tma else (None,) * 5
    attend_kernel[(batch * heads * tiles,)](
        q, k, v, out, lse, *descriptors, kv_count, kv_index, q_off, kv_off, ck, cv, terms, t,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], *q_off.stride()[:2],
        *kv_off.stride()[:2], *ck.stride()[:3], *cv.stride()[:3], *terms.stride()[:3],
        *t.stride()[:3], heads, heads // kv_heads, heads // ck.shape[1], heads // t.shape[1], rows,
        s_q, s_kv, kv_index.shape[-1], ck.shape[2], scale or dim**-0.5, choice,
        *choice.stride()[:3], table, tiles, cc, ci, ci.shape[-1], order, *order.stride()[:2],
        DIM=dim, DIM_V=dim_v, HEAD_DIM=head_dim, HEAD_DIM_V=head_dim_v, Q_SIZE=q_size,
        KV_SIZE=kv_size, BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_C=config.block_c,
        USE_TMA=use_tma, USE_TAIL_TMA=tail_desc is not None and use_tma, IS_Q_UNIFORM=q_cut.offsets
        is None, IS_KV_UNIFORM=uniform, IS_CAUSAL=causal, HAS_FULL=has_full, HAS_SINGLE=single,
        HAS_PARTIAL=partial, HAS_COLUMNS=columns is not None, HAS_TAIL=tail is not None,
        PRECISION=config.precision, HAS_TABLE=has_table, HAS_CHOICE=chosen,
        HAS_ORDER=q_order is not None, COLUMN_GROUP=columns.group if columns is not None and
        columns.count is not None else 0, num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    return out, lse
