"""Portable Triton forward kernel of block-sparse attention (online softmax in log2 units).

    out = ( sum_kept e^{s qk} v + sum_columns e^{s qk + bias} v ) / Z + (column mass / Z) s q T,
    lse = log Z

q [B, H, Sq, D], k/v [B, Hkv, Skv, D/Dv], lists kv_count [B, H, M], kv_index [B, H, M, C]; see
attention.py.
Users: every method. One program per (head, query tile); full key tiles run without any per-element
mask, tiles that may be short or cross the causal diagonal run in a second loop, then the columns,
then the tail.
Limits: forward only, head dims up to 256, no float64; ids must be in range (they are not checked
on the device).
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dit_sparse.kernels import _tune
from dit_sparse.kernels._jit import (
    add_tail,
    block_range,
    column_steps,
    dot,
    full_steps,
    load_rows,
    partial_steps,
    scan_list,
    single_steps,
)
from dit_sparse.kernels.contract import Columns, Cut, allocate, as_cut, per_head
from dit_sparse.kernels.passes import column_terms


@triton.jit
def attend_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, k_desc, v_desc, ck_desc, cv_desc, tail_desc, count_ptr,
    index_ptr, q_offsets_ptr, kv_offsets_ptr, ck_ptr, cv_ptr, terms_ptr, tail_ptr, stride_qb,
    stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_ob, stride_oh, stride_os, stride_fb, stride_fh, stride_gb, stride_gh, stride_ckb,
    stride_ckh, stride_cks, stride_cvb, stride_cvh, stride_cvs, stride_eb, stride_eh, stride_em,
    stride_tb, stride_th, stride_td, heads, group, column_group, tail_group, rows, s_q, s_kv,
    capacity, n_columns, scale, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, Q_SIZE: tl.constexpr, KV_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, USE_TMA: tl.constexpr, USE_TAIL_TMA:
    tl.constexpr, IS_Q_UNIFORM: tl.constexpr, IS_KV_UNIFORM: tl.constexpr, IS_CAUSAL: tl.constexpr,
    HAS_FULL: tl.constexpr, HAS_SINGLE: tl.constexpr, HAS_PARTIAL: tl.constexpr, HAS_COLUMNS:
    tl.constexpr, HAS_TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    Q_TILES: tl.constexpr = (Q_SIZE + BLOCK_M - 1) // BLOCK_M
    # query tiles fastest: the programs that run together share one head's keys in L2
    tile = tl.program_id(0) % (rows * Q_TILES)
    bh = tl.program_id(0) // (rows * Q_TILES)
    if IS_CAUSAL:
        tile = rows * Q_TILES - 1 - tile
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    hk = h // group
    row = tile // Q_TILES
    q_start, q_end = block_range(
        row, q_offsets_ptr + b * stride_fb + h * stride_fh, s_q, Q_SIZE, IS_Q_UNIFORM, True
    )
    q_start += (tile % Q_TILES) * BLOCK_M
    if q_start >= q_end:
        return
    q_rows = q_start + tl.arange(0, BLOCK_M)
    # q: [BLOCK_M, HEAD_DIM]
    q_ptr += b * stride_qb + h * stride_qh
    q = load_rows(q_ptr, stride_qs, q_rows, q_rows < q_end, DIM, HEAD_DIM)
    qk_scale = scale * 1.4426950408889634
    acc = tl.zeros([BLOCK_M, HEAD_DIM_V], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # finite, so that exp2(-inf - peak) is 0 and never nan
    peak = tl.full([BLOCK_M], -1.0e38, tl.float32)

    list_ptr = index_ptr + (bh.to(tl.int64) * rows + row) * capacity
    count = tl.minimum(tl.load(count_ptr + bh.to(tl.int64) * rows + row), capacity)
    kv_offsets_ptr += b * stride_gb + h * stride_gh
    k_ptr += b * stride_kb + hk * stride_kh
    v_ptr += b * stride_vb + hk * stride_vh
    b32 = b.to(tl.int32)
    hk32 = hk.to(tl.int32)
    split = count
    first_seen = q_start + (s_kv - s_q)
    last_seen = tl.minimum(q_start + BLOCK_M, q_end) - 1 + (s_kv - s_q)
    if HAS_PARTIAL:
        split, stop, tiles = scan_list(
            list_ptr, count, kv_offsets_ptr, s_kv, first_seen, last_seen, KV_SIZE, BLOCK_N,
            IS_KV_UNIFORM, IS_CAUSAL, HAS_FULL,
        )  # fmt: skip

    if HAS_FULL:
        acc, total, peak = full_steps(
            acc, total, peak, q, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b32, hk32,
            list_ptr, split, s_kv, qk_scale, KV_SIZE, DIM, DIM_V, HEAD_DIM, HEAD_DIM_V, BLOCK_N,
            USE_TMA, PRECISION,
        )  # fmt: skip
    if HAS_SINGLE:
        acc, total, peak = single_steps(
            acc, total, peak, q, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b32, hk32,
            list_ptr, count, kv_offsets_ptr, s_kv, qk_scale, KV_SIZE, DIM, DIM_V, HEAD_DIM,
            HEAD_DIM_V, BLOCK_N, USE_TMA, IS_KV_UNIFORM, PRECISION,
        )  # fmt: skip
    if HAS_PARTIAL:
        acc, total, peak = partial_steps(
            acc, total, peak, q, q_rows, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b32,
            hk32, list_ptr, split, stop, tiles, kv_offsets_ptr, s_q, s_kv, last_seen, qk_scale,
            KV_SIZE, DIM, DIM_V, HEAD_DIM, HEAD_DIM_V, BLOCK_N, USE_TMA, IS_KV_UNIFORM, IS_CAUSAL,
            PRECISION,
        )  # fmt: skip
    mass = tl.zeros([BLOCK_M], tl.float32)
    if HAS_COLUMNS:
        hc = h // column_group
        acc, total, peak, mass = column_steps(
            acc, total, peak, mass, q, ck_desc, cv_desc, ck_ptr + b * stride_ckb + hc * stride_ckh,
            cv_ptr + b * stride_cvb + hc * stride_cvh, stride_cks, stride_cvs, b32,
            hc.to(tl.int32), terms_ptr + b * stride_eb + h * stride_eh + row.to(tl.int64) *
            stride_em, n_columns, qk_scale, DIM, DIM_V, HEAD_DIM, HEAD_DIM_V, BLOCK_C, USE_TMA,
            HAS_TAIL, PRECISION,
        )  # fmt: skip
    inverse = 1.0 / tl.where(total > 0, total, 1.0)
    if HAS_TAIL:
        ht = h // tail_group
        weight = mass * inverse * scale
        acc = acc * inverse[:, None]
        if USE_TAIL_TMA:
            # one product into the accumulator itself: no second one in registers, no scaled q
            floor = tl.maximum(weight, 1.0e-20)
            t = tail_desc.load([b32, ht.to(tl.int32), 0, 0]).reshape(HEAD_DIM, HEAD_DIM_V)
            acc = dot(q, t, acc * (1.0 / floor)[:, None], PRECISION)
            acc = acc * tl.where(total > 0, floor, 0.0)[:, None]
        else:
            acc = add_tail(
                acc, q_ptr, stride_qs, q_rows, q_end, tail_ptr + b * stride_tb + ht * stride_th,
                stride_td, weight, DIM, DIM_V, HEAD_DIM, HEAD_DIM_V, PRECISION,
            )  # fmt: skip
    else:
        acc = acc * inverse[:, None]
    lse = tl.where(
        total > 0,
        (peak + tl.log2(tl.where(total > 0, total, 1.0))) * 0.6931471805599453,
        float("-inf"),
    )
    tl.store(lse_ptr + bh.to(tl.int64) * s_q + q_rows, lse, mask=q_rows < q_end)
    dims = tl.arange(0, HEAD_DIM_V)
    at = (
        out_ptr
        + b * stride_ob
        + h * stride_oh
        + q_rows.to(tl.int64)[:, None] * stride_os
        + dims[None, :]
    )
    tl.store(
        at,
        acc.to(out_ptr.dtype.element_ty),
        mask=(q_rows < q_end)[:, None] & (dims < DIM_V)[None, :],
    )


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
    Tensor | None = None, causal: bool = False, scale: float | None = None, config:
    _tune.Config | None = None, tma: bool | None = None,
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
    has_tma, big, nvidia = _device(q.device.index or 0) if q.is_cuda else (True, True, True)
    head_dim, head_dim_v = _tune.power_of_2(dim), _tune.power_of_2(dim_v)
    config = config or _tune.choose(
        max(head_dim, head_dim_v),
        q_cut.size,
        kv_cut.size,
        q.element_size(),
        big,
        nvidia,
        kv_cut.offsets is None and not causal,
    )
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out, lse = allocate(q, dim_v)
    q_off = kv_off = kv_index
    if q_cut.offsets is not None:
        q_off = per_head(q_cut.offsets.contiguous(), batch, heads)
        # tokens outside every block
        out.zero_()
        lse.fill_(float("-inf"))
    if kv_cut.offsets is not None:
        kv_off = per_head(kv_cut.offsets.contiguous(), batch, heads)
    uniform = kv_cut.offsets is None
    has_full = uniform and kv_cut.size % config.block_n == 0 and s_kv >= kv_cut.size
    # every block within one tile: a loop of its own, for the walk over unequal blocks is slower
    single = not has_full and not causal and kv_cut.size <= config.block_n
    partial = not single and (causal or not has_full or s_kv % kv_cut.size != 0)
    k_desc = describe(k, config.block_n, head_dim) if has_tma and tma is not False else None
    v_desc = describe(v, config.block_n, head_dim_v) if k_desc is not None else None
    use_tma = v_desc is not None
    ck, cv, terms, t = k, v, lse, k
    ck_desc = cv_desc = tail_desc = None
    if columns is not None:
        ck, cv = (x if x.stride(-1) == 1 else x.contiguous() for x in (columns.k, columns.v))
        terms = column_terms(columns, heads, kv_count.shape[2], config.block_c)
        ck_desc = describe(ck, config.block_c, head_dim) if use_tma else None
        cv_desc = describe(cv, config.block_c, head_dim_v) if ck_desc is not None else None
        use_tma = cv_desc is not None
    if tail is not None:
        t = tail.to(q.dtype).contiguous()
        if use_tma and q.element_size() == 2 and max(head_dim, head_dim_v) <= 128:
            tail_desc = describe(t, head_dim, head_dim_v)
    descriptors = (k_desc, v_desc, ck_desc, cv_desc, tail_desc) if use_tma else (None,) * 5
    rows = kv_count.shape[2]
    grid = (batch * heads * rows * -(-q_cut.size // config.block_m),)
    attend_kernel[grid](
        q, k, v, out, lse, *descriptors, kv_count.contiguous(), kv_index.contiguous(), q_off,
        kv_off, ck, cv, terms, t, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        *out.stride()[:3], *q_off.stride()[:2], *kv_off.stride()[:2], *ck.stride()[:3],
        *cv.stride()[:3], *terms.stride()[:3], *t.stride()[:3], heads, heads // kv_heads, heads //
        ck.shape[1], heads // t.shape[1], rows, s_q, s_kv, kv_index.shape[-1], ck.shape[2], scale
        or dim**-0.5, DIM=dim, DIM_V=dim_v, HEAD_DIM=head_dim, HEAD_DIM_V=head_dim_v,
        Q_SIZE=q_cut.size, KV_SIZE=kv_cut.size, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        BLOCK_C=config.block_c, USE_TMA=use_tma, USE_TAIL_TMA=tail_desc is not None and use_tma,
        IS_Q_UNIFORM=q_cut.offsets is None, IS_KV_UNIFORM=uniform, IS_CAUSAL=causal,
        HAS_FULL=has_full, HAS_SINGLE=single, HAS_PARTIAL=partial, HAS_COLUMNS=columns is not
        None, HAS_TAIL=tail is not None, PRECISION=config.precision, num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    return out, lse
