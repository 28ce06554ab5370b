"""The Triton kernel of block-sparse attention.

One program per (head, query tile); full key tiles run without any per-element mask, tiles that may
be short, cross the causal diagonal or be chosen query by query run in a second loop, then the
columns, then the tail. Launched by block_sparse.py, which states formula, shapes and limits.
"""

import triton
import triton.language as tl

from dit_sparse.kernels._jit import load_rows, query_tile, scan_list, store_rows
from dit_sparse.kernels._steps import (
    add_tail,
    chosen_steps,
    column_steps,
    full_steps,
    listed_steps,
    partial_steps,
    single_steps,
)


@triton.jit
def row_places(order_ptr, rows, live, HAS_ORDER: tl.constexpr):
    """Return where arranged queries `rows` stand, each time anew."""
    places = rows
    if HAS_ORDER:
        places = tl.load(order_ptr + rows, mask=live, other=0, volatile=True)
    return places


@triton.jit
def attend_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, k_desc, v_desc, ck_desc, cv_desc, tail_desc, count_ptr,
    index_ptr, q_offsets_ptr, kv_offsets_ptr, ck_ptr, cv_ptr, terms_ptr, tail_ptr, stride_qb,
    stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_ob, stride_oh, stride_os, stride_fb, stride_fh, stride_gb, stride_gh, stride_ckb,
    stride_ckh, stride_cks, stride_cvb, stride_cvh, stride_cvs, stride_eb, stride_eh, stride_em,
    stride_tb, stride_th, stride_td, heads, group, column_group, tail_group, rows, s_q, s_kv,
    capacity, n_columns, scale, choice_ptr, stride_ab, stride_ah, stride_as, table_ptr, programs,
    cc_ptr, ci_ptr, column_capacity, order_ptr, stride_ib, stride_ih, DIM: tl.constexpr, DIM_V:
    tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, Q_SIZE: tl.constexpr,
    KV_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    USE_TMA: tl.constexpr, USE_TAIL_TMA: tl.constexpr, IS_Q_UNIFORM: tl.constexpr,
    IS_KV_UNIFORM: tl.constexpr, IS_CAUSAL: tl.constexpr, HAS_TABLE: tl.constexpr, HAS_FULL:
    tl.constexpr, HAS_SINGLE: tl.constexpr, HAS_PARTIAL: tl.constexpr, HAS_CHOICE: tl.constexpr,
    HAS_ORDER: tl.constexpr, HAS_COLUMNS: tl.constexpr, COLUMN_GROUP: tl.constexpr, HAS_TAIL:
    tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # query tiles fastest: the programs that run together share one head's keys in L2
    tile = tl.program_id(0) % programs
    bh = tl.program_id(0) // programs
    if IS_CAUSAL and not HAS_TABLE:
        tile = programs - 1 - tile
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    hk = h // group
    row, q_start, q_end = query_tile(
        tile, table_ptr + bh.to(tl.int64) * programs * 2, q_offsets_ptr + b * stride_fb + h *
        stride_fh, s_q, Q_SIZE, BLOCK_M, HAS_TABLE, IS_Q_UNIFORM,
    )  # fmt: skip
    if q_start >= q_end:
        return
    q_rows = q_start + tl.arange(0, BLOCK_M)
    live = q_rows < q_end
    order_ptr += b * stride_ib + h * stride_ih
    # q: [BLOCK_M, HEAD_DIM]
    q_ptr += b * stride_qb + h * stride_qh
    places = row_places(order_ptr, q_rows, live, HAS_ORDER)
    q = load_rows(q_ptr, stride_qs, places, live, DIM, HEAD_DIM)
    qk_scale = scale * 1.4426950408889634
    acc = tl.zeros([BLOCK_M, HEAD_DIM_V], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # finite, so that exp2(-inf - peak) is 0 and never nan
    peak = tl.full([BLOCK_M], -1.0e38, tl.float32)

    at = bh.to(tl.int64) * rows + row
    list_ptr = index_ptr + at * capacity
    count = tl.minimum(tl.load(count_ptr + at), capacity)
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
            acc, total, peak, q, q_rows, 0, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs,
            b32, hk32, list_ptr, split, stop, tiles, kv_offsets_ptr, s_q, s_kv, first_seen,
            last_seen, qk_scale, KV_SIZE, DIM, DIM_V, HEAD_DIM, HEAD_DIM_V, BLOCK_N, USE_TMA,
            IS_KV_UNIFORM, IS_CAUSAL, False, PRECISION,
        )  # fmt: skip
    if HAS_CHOICE:
        acc, total, peak = chosen_steps(
            acc, total, peak, q, q_rows, q_end, choice_ptr + b * stride_ab + h * stride_ah,
            stride_as, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b32, hk32, list_ptr,
            count, kv_offsets_ptr, s_q, s_kv, first_seen, last_seen, qk_scale, KV_SIZE, DIM, DIM_V,
            HEAD_DIM, HEAD_DIM_V, BLOCK_N, USE_TMA, IS_KV_UNIFORM, IS_CAUSAL, PRECISION,
        )  # fmt: skip
    mass = tl.zeros([BLOCK_M], tl.float32)
    if HAS_COLUMNS:
        hc = h // column_group
        ck_ptr += b * stride_ckb + hc * stride_ckh
        cv_ptr += b * stride_cvb + hc * stride_cvh
        terms_ptr += b * stride_eb + h * stride_eh + row.to(tl.int64) * stride_em
        if COLUMN_GROUP:
            acc, total, peak, mass = listed_steps(
                acc, total, peak, mass, q, ck_ptr, cv_ptr, stride_cks, stride_cvs, ci_ptr + at *
                column_capacity, tl.minimum(tl.load(cc_ptr + at), column_capacity), terms_ptr,
                n_columns, qk_scale, COLUMN_GROUP, DIM, DIM_V, HEAD_DIM, HEAD_DIM_V, BLOCK_C,
                HAS_TAIL, PRECISION,
            )  # fmt: skip
        else:
            acc, total, peak, mass = column_steps(
                acc, total, peak, mass, q, ck_desc, cv_desc, ck_ptr, cv_ptr, stride_cks,
                stride_cvs, b32, hc.to(tl.int32), terms_ptr, n_columns, qk_scale, DIM, DIM_V,
                HEAD_DIM, HEAD_DIM_V, BLOCK_C, USE_TMA, HAS_TAIL, PRECISION,
            )  # fmt: skip
    safe = tl.where(total > 0, total, 1.0)
    # read again: kept, they would take registers from the loops (measured: 1.2 times slower)
    places = row_places(order_ptr, q_rows, live, HAS_ORDER)
    if HAS_TAIL:
        ht = h // tail_group
        acc = add_tail(
            acc, total, mass, q, q_ptr, stride_qs, places, live, tail_desc, tail_ptr + b *
            stride_tb + ht * stride_th, stride_td, b32, ht.to(tl.int32), scale, DIM, DIM_V,
            HEAD_DIM, HEAD_DIM_V, USE_TAIL_TMA, PRECISION,
        )  # fmt: skip
    else:
        acc = acc * (1.0 / safe)[:, None]
    lse = tl.where(total > 0, (peak + tl.log2(safe)) * 0.6931471805599453, float("-inf"))
    tl.store(lse_ptr + bh.to(tl.int64) * s_q + places, lse, mask=live)
    out_ptr += b * stride_ob + h * stride_oh
    store_rows(out_ptr, stride_os, places, live, acc, DIM_V, HEAD_DIM_V)
