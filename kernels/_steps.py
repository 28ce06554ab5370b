"""The loops of the attention kernel: exact blocks of each kind, extra columns, the tail.

Each folds keys and values into (acc, total, peak), the online softmax of one query tile in log2
units.
"""

import triton
import triton.language as tl

from dit_sparse.kernels._jit import (
    block_range,
    chosen_step,
    dot,
    load_rows,
    load_tile,
    scan_list,
    scores,
    softmax_step,
)


@triton.jit
def full_steps(
    acc, total, peak, q, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b, h, list_ptr, count,
    tokens, qk_scale, SIZE: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM:
    tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to the first `count` listed blocks, which are whole tiles and wholly visible: no mask
    at all."""
    TILES: tl.constexpr = SIZE // BLOCK_N
    block = tl.load(list_ptr, mask=count > 0, other=0)
    for i in range(0, count * TILES):
        start = block * SIZE + (i % TILES) * BLOCK_N
        # the id of the next step is on its way while this one computes
        block = tl.load(list_ptr + tl.minimum((i + 1) // TILES, count - 1))
        # k: [BLOCK_N, HEAD_DIM]
        k = load_tile(
            k_desc, k_ptr, stride_ks, b, h, start, tokens, DIM, BLOCK_N, HEAD_DIM, USE_TMA
        )
        s = scores(q, k, PRECISION)
        # v: [BLOCK_N, HEAD_DIM_V]
        v = load_tile(
            v_desc, v_ptr, stride_vs, b, h, start, tokens, DIM_V, BLOCK_N, HEAD_DIM_V, USE_TMA
        )
        acc, total, peak = softmax_step(acc, total, peak, s, v, qk_scale, PRECISION)
    return acc, total, peak


@triton.jit
def single_steps(
    acc, total, peak, q, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b, h, list_ptr, count,
    offsets_ptr, tokens, qk_scale, SIZE: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr,
    IS_UNIFORM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to all listed blocks, each of which fits one tile: only the logits are masked."""
    some = count > 0
    block = tl.load(list_ptr, mask=some, other=0)
    start, end = block_range(block, offsets_ptr, tokens, SIZE, IS_UNIFORM, some)
    block = tl.load(list_ptr + tl.minimum(1, count - 1), mask=some, other=0)
    for i in range(0, count):
        seen = start + tl.arange(0, BLOCK_N) < end
        # k: [BLOCK_N, HEAD_DIM]; rows past the block are other keys, hidden below
        k = load_tile(k_desc, k_ptr, stride_ks, b, h, start, end, DIM, BLOCK_N, HEAD_DIM, USE_TMA)
        s = tl.where(seen[None, :], scores(q, k, PRECISION), float("-inf"))
        # v: [BLOCK_N, HEAD_DIM_V]
        v = load_tile(
            v_desc, v_ptr, stride_vs, b, h, start, end, DIM_V, BLOCK_N, HEAD_DIM_V, USE_TMA
        )
        # bounds one step and id two steps ahead: the loads above never wait for a chain of three
        start, end = block_range(block, offsets_ptr, tokens, SIZE, IS_UNIFORM, some)
        block = tl.load(list_ptr + tl.minimum(i + 2, count - 1))
        acc, total, peak = softmax_step(acc, total, peak, s, v, qk_scale, PRECISION)
    return acc, total, peak


@triton.jit
def partial_steps(
    acc, total, peak, q, q_rows, chosen, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b, h,
    list_ptr, entry, stop, tiles, offsets_ptr, s_q, s_kv, first_seen, last_seen, qk_scale, SIZE:
    tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V:
    tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr, IS_UNIFORM: tl.constexpr,
    IS_CAUSAL: tl.constexpr, IS_CHOSEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to entries [entry, stop) in `tiles` tiles: short, variable or causal blocks, or blocks
    that each query chooses for itself.

    `tiles` may be too many: past the last entry all is hidden. chosen: [BLOCK_M] int32, bit i tells
    whether the query sees entry i (where IS_CHOSEN).
    """
    block = tl.load(list_ptr + entry, mask=entry < stop, other=0)
    start, end = block_range(block, offsets_ptr, s_kv, SIZE, IS_UNIFORM, entry < stop)
    follower = tl.load(list_ptr + entry + 1, mask=entry + 1 < stop, other=0)
    next_start, next_end = block_range(
        follower, offsets_ptr, s_kv, SIZE, IS_UNIFORM, entry + 1 < stop
    )
    block = tl.load(list_ptr + entry + 2, mask=entry + 2 < stop, other=0)
    for _ in range(0, tiles):
        # k: [BLOCK_N, HEAD_DIM]; rows past the block are other keys, hidden below
        k = load_tile(k_desc, k_ptr, stride_ks, b, h, start, end, DIM, BLOCK_N, HEAD_DIM, USE_TMA)
        s = scores(q, k, PRECISION)
        whole = start + BLOCK_N <= end
        if IS_CAUSAL:
            whole = whole & (start + BLOCK_N - 1 <= first_seen)
        if not whole:
            cols = tl.arange(0, BLOCK_N)
            seen = (cols < end - start)[None, :]
            if IS_CAUSAL:
                seen = seen & (cols[None, :] <= (q_rows + (s_kv - s_q - start))[:, None])
            s = tl.where(seen, s, float("-inf"))
        # v: [BLOCK_N, HEAD_DIM_V]
        v = load_tile(
            v_desc, v_ptr, stride_vs, b, h, start, end, DIM_V, BLOCK_N, HEAD_DIM_V, USE_TMA
        )
        if IS_CHOSEN:
            mine = (chosen >> entry) & 1
            acc, total, peak = chosen_step(acc, total, peak, s, v, mine != 0, qk_scale, PRECISION)
        else:
            acc, total, peak = softmax_step(acc, total, peak, s, v, qk_scale, PRECISION)
        start += BLOCK_N
        past = start >= (tl.minimum(end, last_seen + 1) if IS_CAUSAL else end)
        start = tl.where(past, next_start, start)
        end = tl.where(past, next_end, end)
        entry += past.to(tl.int32)
        # bounds of the block after next, id of the one behind it: each has a step to arrive
        follower = tl.where(past, block, follower)
        next_start, next_end = block_range(
            follower, offsets_ptr, s_kv, SIZE, IS_UNIFORM, entry + 1 < stop
        )
        block = tl.load(list_ptr + tl.minimum(entry + 2, stop - 1))
    return acc, total, peak


@triton.jit
def chosen_steps(
    acc, total, peak, q, q_rows, q_end, choice_ptr, stride_cs, k_desc, v_desc, k_ptr, v_ptr,
    stride_ks, stride_vs, b, h, list_ptr, count, offsets_ptr, s_q, s_kv, first_seen, last_seen,
    qk_scale, SIZE: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr, IS_UNIFORM:
    tl.constexpr, IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to all listed blocks, each query to those it chooses: 16 at a time, one bit of an
    integer each, so that the inner loop loads no mask.

    choice_ptr: [Sq, N] int8 of this head, stride_cs between queries.
    """
    bit = tl.arange(0, 16)
    for base in range(0, count, 16):
        few = tl.minimum(count - base, 16)
        _, stop, tiles = scan_list(
            list_ptr + base, few, offsets_ptr, s_kv, first_seen, last_seen, SIZE, BLOCK_N,
            IS_UNIFORM, IS_CAUSAL, False,
        )  # fmt: skip
        # ids: [16], mask: [BLOCK_M, 16] int8
        ids = tl.load(list_ptr + base + bit, mask=bit < few, other=0)
        at = choice_ptr + q_rows.to(tl.int64)[:, None] * stride_cs + ids[None, :]
        mask = tl.load(at, mask=(q_rows < q_end)[:, None] & (bit < few)[None, :], other=0)
        chosen = tl.sum((mask != 0).to(tl.int32) << bit[None, :], 1)
        acc, total, peak = partial_steps(
            acc, total, peak, q, q_rows, chosen, k_desc, v_desc, k_ptr, v_ptr, stride_ks,
            stride_vs, b, h, list_ptr + base, few * 0, stop, tiles, offsets_ptr, s_q, s_kv,
            first_seen, last_seen, qk_scale, SIZE, DIM, DIM_V, HEAD_DIM, HEAD_DIM_V, BLOCK_N,
            USE_TMA, IS_UNIFORM, IS_CAUSAL, True, PRECISION,
        )  # fmt: skip
    return acc, total, peak


@triton.jit
def column_step(acc, total, peak, mass, s, v, HAS_TAIL: tl.constexpr, PRECISION: tl.constexpr):
    """Fold logits s [M, C] in log2 units, -inf where hidden; `mass` sums the exponentials of
    columns."""
    new_peak = tl.maximum(peak, tl.max(s, 1))
    p = tl.exp2(s - new_peak[:, None])
    alpha = tl.exp2(peak - new_peak)
    row_sum = tl.sum(p, 1)
    total = total * alpha + row_sum
    if HAS_TAIL:
        # the columns' mass moves with the running maximum as everything else does
        mass = mass * alpha + row_sum
    acc = dot(p.to(v.dtype), v, acc * alpha[:, None], PRECISION)
    return acc, total, new_peak, mass


@triton.jit
def column_steps(
    acc, total, peak, mass, q, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b, h, terms_ptr,
    n_columns, qk_scale, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, BLOCK_C: tl.constexpr, USE_TMA: tl.constexpr, HAS_TAIL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Stream all extra columns through the same online softmax; `mass` is the sum of their
    exponentials."""
    # terms: [BLOCK_C] float32, log2 e * bias or -inf; the row is padded to whole tiles
    terms_ptr += tl.arange(0, BLOCK_C)
    add = tl.load(terms_ptr)
    for c in range(0, n_columns, BLOCK_C):
        # k: [BLOCK_C, HEAD_DIM]
        k = load_tile(k_desc, k_ptr, stride_ks, b, h, c, n_columns, DIM, BLOCK_C, HEAD_DIM, USE_TMA)
        s = scores(q, k, PRECISION) * qk_scale + add[None, :]
        # those of the next step are on their way while this one computes
        add = tl.load(terms_ptr + tl.where(c + BLOCK_C < n_columns, c + BLOCK_C, c))
        # v: [BLOCK_C, HEAD_DIM_V]
        v = load_tile(
            v_desc, v_ptr, stride_vs, b, h, c, n_columns, DIM_V, BLOCK_C, HEAD_DIM_V, USE_TMA
        )
        acc, total, peak, mass = column_step(acc, total, peak, mass, s, v, HAS_TAIL, PRECISION)
    return acc, total, peak, mass


@triton.jit
def listed_steps(
    acc, total, peak, mass, q, k_ptr, v_ptr, stride_ks, stride_vs, list_ptr, count, terms_ptr,
    n_columns, qk_scale, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM:
    tl.constexpr, HEAD_DIM_V: tl.constexpr, BLOCK_C: tl.constexpr, HAS_TAIL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Stream `count` listed groups of GROUP extra columns, merged into whole tiles, as
    column_steps does.

    terms_ptr: [C2] float32 of this head, log2 e * bias.
    """
    at = tl.arange(0, BLOCK_C)
    stop = count * GROUP
    # column: [BLOCK_C] of this tile; entry: [BLOCK_C] list entries of the next one
    column = tl.load(list_ptr + at // GROUP, mask=at < stop, other=0) * GROUP + at % GROUP
    column = tl.where(at < stop, column, n_columns)
    at += BLOCK_C
    entry = tl.load(list_ptr + at // GROUP, mask=at < stop, other=0)
    for c in range(0, stop, BLOCK_C):
        live = column < n_columns
        add = tl.load(terms_ptr + column, mask=live, other=float("-inf"))
        # k: [BLOCK_C, HEAD_DIM]
        k = load_rows(k_ptr, stride_ks, column, live, DIM, HEAD_DIM)
        s = scores(q, k, PRECISION) * qk_scale + add[None, :]
        # v: [BLOCK_C, HEAD_DIM_V]
        v = load_rows(v_ptr, stride_vs, column, live, DIM_V, HEAD_DIM_V)
        # entries two tiles ahead, so that no load of keys waits for them
        at = c + BLOCK_C + tl.arange(0, BLOCK_C)
        column = tl.where(at < stop, entry * GROUP + at % GROUP, n_columns)
        at += BLOCK_C
        entry = tl.load(list_ptr + at // GROUP, mask=at < stop, other=0)
        acc, total, peak, mass = column_step(acc, total, peak, mass, s, v, HAS_TAIL, PRECISION)
    return acc, total, peak, mass


@triton.jit
def add_tail(
    acc, total, mass, q, q_ptr, stride_qs, places, live, tail_desc, tail_ptr, stride_td, b, h,
    scale, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V:
    tl.constexpr, USE_TMA: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return acc / total + mass / total * scale * q @ tail; 0 where total is."""
    inverse = 1.0 / tl.where(total > 0, total, 1.0)
    weight = mass * inverse * scale
    acc = acc * inverse[:, None]
    if USE_TMA:
        # one product into the accumulator itself: no second one in registers, no scaled q
        floor = tl.maximum(weight, 1.0e-20)
        t = tail_desc.load([b, h, 0, 0]).reshape(HEAD_DIM, HEAD_DIM_V)
        acc = dot(q, t, acc * (1.0 / floor)[:, None], PRECISION)
        acc = acc * tl.where(total > 0, floor, 0.0)[:, None]
    else:
        # slices of the head dim: all of q as a register operand would spill
        for d in tl.range(0, HEAD_DIM, 16, num_stages=1):
            dims = d + tl.arange(0, 16)
            inside = live[:, None] & (dims < DIM)[None, :]
            # q: [BLOCK_M, 16], tail: [16, HEAD_DIM_V]
            at = q_ptr + places.to(tl.int64)[:, None] * stride_qs + dims[None, :]
            part = tl.load(at, mask=inside, other=0.0)
            t = load_rows(tail_ptr, stride_td, dims, dims < DIM, DIM_V, HEAD_DIM_V)
            part = (part.to(tl.float32) * weight[:, None]).to(part.dtype)
            acc = dot(part, t.to(part.dtype), acc, PRECISION)
    return acc
