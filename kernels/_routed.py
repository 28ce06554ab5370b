"""The Triton kernels of attention routed query by query: lists, visits of key blocks, the merge.

A state is the attention of one query over the key blocks visited so far: its output in float32 and
its lse in log2 units, -inf before the first visit. The queries of one head have one state in each
"lane"; a launch visits one key block in every lane. Launched by routed.py, which states formula,
shapes and limits.
"""

import triton
import triton.language as tl

from dit_sparse.kernels._jit import (
    block_range,
    load_rows,
    load_tile,
    scores,
    softmax_step,
    store_rows,
)


@triton.jit(do_not_specialize=["first"])
def list_kernel(
    mask_ptr, kept_ptr, offsets_ptr, ends_ptr, index_ptr, stride_mb, stride_mh, stride_ms,
    stride_gb, stride_gh, heads, first, tiles, s_q, s_kv, blocks, parts, Q_SIZE: tl.constexpr,
    KV_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_J: tl.constexpr, HAS_LISTS: tl.constexpr,
    IS_UNIFORM: tl.constexpr, IS_CAUSAL: tl.constexpr, IS_COUNT: tl.constexpr,
):  # fmt: skip
    """Count the queries of one part that see each of BLOCK_J key blocks, or write their ids behind
    those of the parts before.

    ends: [heads here, N, parts] int32, counts, and at the second launch their running sums.
    """
    part = tl.program_id(0) % parts
    local = tl.program_id(0) // parts
    b = ((first + local) // heads).to(tl.int64)
    h = ((first + local) % heads).to(tl.int64)
    rows = part * BLOCK_M + tl.arange(0, BLOCK_M)
    block = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    live = block < blocks
    start, end = block_range(
        block, offsets_ptr + b * stride_gb + h * stride_gh, s_kv, KV_SIZE, IS_UNIFORM, live
    )
    inside = (rows < s_q)[:, None] & (live & (start < end))[None, :]
    # a visit without a single visible key would change nothing
    if IS_CAUSAL:
        inside = inside & (start[None, :] <= rows[:, None] + (s_kv - s_q))
    # mask: [BLOCK_M, BLOCK_J] int8
    at = b * stride_mb + h * stride_mh + rows.to(tl.int64)[:, None] * stride_ms + block[None, :]
    seen = tl.load(mask_ptr + at, mask=inside, other=0) != 0
    if HAS_LISTS:
        # kept: [BLOCK_M, BLOCK_J] int8, the row of each query's tile
        row = (first + local).to(tl.int64) * tiles + rows // Q_SIZE
        at = row[:, None] * blocks + block[None, :]
        seen = seen & (tl.load(kept_ptr + at, mask=inside, other=0) != 0)
    seen = seen.to(tl.int32)
    line = local.to(tl.int64) * blocks + block
    count = tl.sum(seen, 0)
    if IS_COUNT:
        tl.store(ends_ptr + line * parts + part, count, mask=live)
    else:
        begin = tl.load(ends_ptr + line * parts + part, mask=live, other=0) - count
        place = (line * s_q + begin)[None, :] + tl.cumsum(seen, 0) - 1
        ids = tl.broadcast_to(rows[:, None], (BLOCK_M, BLOCK_J))
        tl.store(index_ptr + place, ids, mask=seen != 0)


@triton.jit
def fold_block(
    acc, total, peak, q, rows, live, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b, h,
    start, end, shift, qk_scale, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr, IS_CAUSAL:
    tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to keys [start, end): whole tiles without a mask, then the rest with one."""
    whole = end
    if IS_CAUSAL:
        whole = tl.minimum(end, tl.min(tl.where(live, rows, 2147483647), 0) + shift + 1)
        end = tl.minimum(end, tl.max(tl.where(live, rows, 0), 0) + shift + 1)
    split = start + tl.maximum(whole - start, 0) // BLOCK_N * BLOCK_N
    for at in range(start, split, BLOCK_N):
        # k: [BLOCK_N, HEAD_DIM]
        k = load_tile(k_desc, k_ptr, stride_ks, b, h, at, end, DIM, BLOCK_N, HEAD_DIM, USE_TMA)
        s = scores(q, k, PRECISION)
        # v: [BLOCK_N, HEAD_DIM_V]
        v = load_tile(v_desc, v_ptr, stride_vs, b, h, at, end, DIM_V, BLOCK_N, HEAD_DIM_V, USE_TMA)
        acc, total, peak = softmax_step(acc, total, peak, s, v, qk_scale, PRECISION)
    # one tile unless causal: nothing to overlap
    for at in tl.range(split, end, BLOCK_N, num_stages=1):
        cols = at + tl.arange(0, BLOCK_N)
        seen = (cols < end)[None, :]
        if IS_CAUSAL:
            seen = seen & (cols[None, :] <= (rows + shift)[:, None])
        # k: [BLOCK_N, HEAD_DIM]; rows past the block are other keys, hidden here
        k = load_tile(k_desc, k_ptr, stride_ks, b, h, at, end, DIM, BLOCK_N, HEAD_DIM, USE_TMA)
        s = tl.where(seen, scores(q, k, PRECISION), float("-inf"))
        # v: [BLOCK_N, HEAD_DIM_V]
        v = load_tile(v_desc, v_ptr, stride_vs, b, h, at, end, DIM_V, BLOCK_N, HEAD_DIM_V, USE_TMA)
        acc, total, peak = softmax_step(acc, total, peak, s, v, qk_scale, PRECISION)
    return acc, total, peak


@triton.jit(do_not_specialize=["first", "here", "turn"])
def visit_kernel(
    q_ptr, k_ptr, v_ptr, state_ptr, lse_ptr, k_desc, v_desc, offsets_ptr, ends_ptr, index_ptr,
    stride_qb, stride_qh, stride_qs, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh,
    stride_vs, stride_gb, stride_gh, heads, group, first, here, some, turn, lanes, blocks, parts,
    s_q, s_kv, scale, programs, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, KV_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    USE_TMA: tl.constexpr, IS_UNIFORM: tl.constexpr, IS_CAUSAL: tl.constexpr, PRECISION:
    tl.constexpr,
):  # fmt: skip
    """Fold the lane's key block of this turn into the states of the queries that listed it.

    state: [lanes, some, Sq, Dv] float32, lse: [lanes, some, Sq] float32; `here` heads are in use.
    """
    # query tiles fastest: the programs that run together share the keys of one block in L2
    slot = tl.program_id(0) % programs
    local = tl.program_id(0) // programs % here
    lane = tl.program_id(0) // (programs * here)
    block = turn * lanes + lane
    if block >= blocks:
        return
    line = local.to(tl.int64) * blocks + block
    count = tl.load(ends_ptr + line * parts + parts - 1)
    b = ((first + local) // heads).to(tl.int64)
    h = ((first + local) % heads).to(tl.int64)
    hk = h // group
    start, end = block_range(
        block, offsets_ptr + b * stride_gb + h * stride_gh, s_kv, KV_SIZE, IS_UNIFORM, True
    )
    q_ptr += b * stride_qb + h * stride_qh
    k_ptr += b * stride_kb + hk * stride_kh
    v_ptr += b * stride_vb + hk * stride_vh
    lse_ptr += (lane.to(tl.int64) * some + local) * s_q
    state_ptr += (lane.to(tl.int64) * some + local) * s_q * DIM_V
    stop = (count + BLOCK_M - 1) // BLOCK_M
    # what does not change from tile to tile is made anew: kept, it would take a tile's registers
    for tile in tl.range(slot, stop, programs, num_stages=1, disable_licm=True):
        at = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        live = at < count
        # rows: [BLOCK_M] rising token positions
        rows = tl.load(index_ptr + line * s_q + at, mask=live, other=0)
        # q: [BLOCK_M, HEAD_DIM]
        q = load_rows(q_ptr, stride_qs, rows, live, DIM, HEAD_DIM)
        lse = tl.load(lse_ptr + rows, mask=live, other=float("-inf"))
        begun = lse != float("-inf")
        # the output so far is one key of weight 1 at the height of its lse: [BLOCK_M, HEAD_DIM_V];
        # before the first visit that memory is not written yet
        acc = load_rows(state_ptr, DIM_V, rows, live & begun, DIM_V, HEAD_DIM_V)
        total = tl.where(begun, 1.0, 0.0)
        peak = tl.where(begun, lse, -1.0e38)
        acc, total, peak = fold_block(
            acc, total, peak, q, rows, live, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs,
            b.to(tl.int32), hk.to(tl.int32), start, end, s_kv - s_q, scale * 1.4426950408889634,
            DIM, DIM_V, HEAD_DIM, HEAD_DIM_V, BLOCK_N, USE_TMA, IS_CAUSAL, PRECISION,
        )  # fmt: skip
        none = total == 0
        total = tl.where(none, 1.0, total)
        lse = tl.where(none, float("-inf"), peak + tl.log2(total))
        # read again: the addresses, kept through the loops, would take the registers of a tile
        rows = tl.load(index_ptr + line * s_q + at, mask=live, other=0, volatile=True)
        store_rows(state_ptr, DIM_V, rows, live, acc * (1.0 / total)[:, None], DIM_V, HEAD_DIM_V)
        tl.store(lse_ptr + rows, lse, mask=live)


@triton.jit(do_not_specialize=["first"])
def merge_kernel(
    state_ptr, lse_ptr, out_ptr, out_lse_ptr, stride_ob, stride_oh, stride_os, heads, first, some,
    lanes, s_q, tiles, DIM_V: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Merge the states of all lanes by their lse, in rising order; no state at all gives 0 and
    -inf."""
    local = tl.program_id(0) // tiles
    b = ((first + local) // heads).to(tl.int64)
    h = ((first + local) % heads).to(tl.int64)
    rows = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < s_q
    acc = tl.zeros([BLOCK_M, HEAD_DIM_V], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], -1.0e38, tl.float32)
    for lane in range(0, lanes):
        at = (local + lane * some).to(tl.int64) * s_q
        lse = tl.load(lse_ptr + at + rows, mask=inside, other=float("-inf"))
        # state: [BLOCK_M, HEAD_DIM_V]
        keep = inside & (lse != float("-inf"))
        state = load_rows(state_ptr + at * DIM_V, DIM_V, rows, keep, DIM_V, HEAD_DIM_V)
        top = tl.maximum(peak, lse)
        old = tl.exp2(peak - top)
        new = tl.exp2(lse - top)
        acc = acc * old[:, None] + state * new[:, None]
        total = total * old + new
        peak = top
    none = total == 0
    total = tl.where(none, 1.0, total)
    lse = tl.where(none, float("-inf"), (peak + tl.log2(total)) * 0.6931471805599453)
    tl.store(out_lse_ptr + (first + local).to(tl.int64) * s_q + rows, lse, mask=inside)
    out_ptr += b * stride_ob + h * stride_oh
    store_rows(out_ptr, stride_os, rows, inside, acc * (1.0 / total)[:, None], DIM_V, HEAD_DIM_V)
