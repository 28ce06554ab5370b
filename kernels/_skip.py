"""The Triton kernel of attention that leaves out tiles while it runs; launched by skip.py."""

import triton
import triton.language as tl

from dit_sparse.kernels._jit import load_rows, load_tile, scores, softmax_step, store_rows


@triton.jit
def visit(
    acc, total, peak, done, q, live, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b, h,
    first, stop, last, s_kv, edge, qk_scale, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM:
    tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr, HAS_MASK:
    tl.constexpr, IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Walk the key tiles of [first, stop); `done` counts those that were computed.

    last: [BLOCK_M] the last key that each query sees. Causal masked tiles hold own keys: computed.
    """
    for start in range(first, stop, BLOCK_N):
        # k: [BLOCK_N, HEAD_DIM]
        k = load_tile(k_desc, k_ptr, stride_ks, b, h, start, s_kv, DIM, BLOCK_N, HEAD_DIM, USE_TMA)
        s = scores(q, k, PRECISION)
        if HAS_MASK:
            key = start + tl.arange(0, BLOCK_N)
            s = tl.where(key[None, :] <= last[:, None], s, float("-inf"))
        rise = tl.where(live, tl.max(s, 1) * qk_scale - peak, float("-inf"))
        # "not below": a tile with NaN is computed, so that it shows
        is_low = (tl.max(rise, 0) < edge) & (tl.max((rise != rise).to(tl.int32), 0) == 0)
        if HAS_MASK and IS_CAUSAL:
            is_low = is_low & (start < 0)
        if is_low == 0:
            # v: [BLOCK_N, HEAD_DIM_V]
            v = load_tile(
                v_desc, v_ptr, stride_vs, b, h, start, s_kv, DIM_V, BLOCK_N, HEAD_DIM_V, USE_TMA
            )
            acc, total, peak = softmax_step(acc, total, peak, s, v, qk_scale, PRECISION)
            done += 1
    return acc, total, peak, done


@triton.jit
def skip_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, done_ptr, k_desc, v_desc, stride_qb, stride_qh,
    stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs, stride_ob,
    stride_oh, stride_os, heads, group, tiles, s_q, s_kv, scale, edge, DIM: tl.constexpr, DIM_V:
    tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N:
    tl.constexpr, USE_TMA: tl.constexpr, IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % tiles
    bh = tl.program_id(0) // tiles
    if IS_CAUSAL:
        # the longest first
        tile = tiles - 1 - tile
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    hk = h // group
    q_rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = q_rows < s_q
    # q: [BLOCK_M, HEAD_DIM]
    q = load_rows(q_ptr + b * stride_qb + h * stride_qh, stride_qs, q_rows, live, DIM, HEAD_DIM)
    k_ptr += b * stride_kb + hk * stride_kh
    v_ptr += b * stride_vb + hk * stride_vh
    b32 = b.to(tl.int32)
    hk32 = hk.to(tl.int32)
    acc = tl.zeros([BLOCK_M, HEAD_DIM_V], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # finite, so that exp2(-inf - peak) is 0 and never nan
    peak = tl.full([BLOCK_M], -1.0e38, tl.float32)
    done = tl.zeros([], tl.int32)
    last = tl.zeros([BLOCK_M], tl.int32) + s_kv - 1
    seen, stop = s_kv, s_kv
    if IS_CAUSAL:
        last = q_rows + (s_kv - s_q)
        seen = tl.maximum(tile * BLOCK_M + (s_kv - s_q) + 1, 0)
        stop = tl.minimum(tl.minimum((tile + 1) * BLOCK_M, s_q) + (s_kv - s_q), s_kv)
    # tiles below `whole` are seen by every query
    whole = seen // BLOCK_N * BLOCK_N
    qk_scale = scale * 1.4426950408889634
    acc, total, peak, done = visit(
        acc, total, peak, done, q, live, k_desc, v_desc, k_ptr, v_ptr, stride_ks,
        stride_vs, b32, hk32, 0, whole, last, s_kv, edge, qk_scale, DIM, DIM_V, HEAD_DIM,
        HEAD_DIM_V, BLOCK_N, USE_TMA, False, IS_CAUSAL, PRECISION,
    )  # fmt: skip
    acc, total, peak, done = visit(
        acc, total, peak, done, q, live, k_desc, v_desc, k_ptr, v_ptr, stride_ks,
        stride_vs, b32, hk32, whole, stop, last, s_kv, edge, qk_scale, DIM, DIM_V, HEAD_DIM,
        HEAD_DIM_V, BLOCK_N, USE_TMA, True, IS_CAUSAL, PRECISION,
    )  # fmt: skip
    safe = tl.where(total > 0, total, 1.0)
    lse = tl.where(total > 0, (peak + tl.log2(safe)) * 0.6931471805599453, float("-inf"))
    at = bh.to(tl.int64)
    tl.store(lse_ptr + at * s_q + q_rows, lse, mask=live)
    tl.store(done_ptr + at * tiles + tile, done)
    out_ptr += b * stride_ob + h * stride_oh
    store_rows(out_ptr, stride_os, q_rows, live, acc * (1.0 / safe)[:, None], DIM_V, HEAD_DIM_V)
