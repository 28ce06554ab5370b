"""Triton primitives shared by the kernels: block bounds, tile loads, list scan, online-softmax
step."""

import triton
import triton.language as tl

# the interpreter multiplies bfloat16 by its bit patterns: there, products are taken in float32
# (exact for 2-byte types)
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Return a @ b + acc with float32 accumulation."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def scores(q, k, PRECISION: tl.constexpr):
    """Return q @ k^T in float32."""
    if INTERPRETED:
        q = q.to(tl.float32)
        k = k.to(tl.float32)
    return tl.dot(q, tl.trans(k), input_precision=PRECISION)


@triton.jit
def block_range(block, offsets_ptr, tokens, SIZE: tl.constexpr, IS_UNIFORM: tl.constexpr, live):
    """First and past-the-end token of a block (scalar or vector of blocks); (0, 0) where not
    live."""
    if IS_UNIFORM:
        start = block * SIZE
        end = tl.minimum(start + SIZE, tokens)
        start = tl.where(live, start, 0)
        end = tl.where(live, end, 0)
    else:
        start = tl.load(offsets_ptr + block, mask=live, other=0)
        end = tl.load(offsets_ptr + block + 1, mask=live, other=0)
    return start, end


@triton.jit
def load_rows(ptr, stride, rows, keep, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load [rows, BLOCK_D] by pointers; zeros where a row is not kept or a column is past DIM."""
    cols = tl.arange(0, BLOCK_D)
    at = ptr + rows.to(tl.int64)[:, None] * stride + cols[None, :]
    mask = keep[:, None]
    if DIM != BLOCK_D:
        mask = mask & (cols < DIM)[None, :]
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def load_tile(
    desc, ptr, stride, b, h, start, tokens, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D:
    tl.constexpr, USE_TMA: tl.constexpr,
):  # fmt: skip
    """Load [BLOCK, BLOCK_D] tokens from `start`; rows past `tokens` are zero."""
    if USE_TMA:
        return desc.load([b, h, start, 0]).reshape(BLOCK, BLOCK_D)
    else:
        rows = start + tl.arange(0, BLOCK)
        return load_rows(ptr, stride, rows, rows < tokens, DIM, BLOCK_D)


@triton.jit
def softmax_step(acc, total, peak, s, v, qk_scale, PRECISION: tl.constexpr):
    """Fold raw logits s [M, N] (-inf where hidden) and values v [N, Dv] into (acc, total, peak),
    log2 units."""
    new_peak = tl.maximum(peak, tl.max(s, 1) * qk_scale)
    p = tl.exp2(s * qk_scale - new_peak[:, None])
    alpha = tl.exp2(peak - new_peak)
    total = total * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    acc = dot(p.to(v.dtype), v, acc, PRECISION)
    return acc, total, new_peak


@triton.jit
def column_steps(
    acc, total, peak, mass, q, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b, h, terms_ptr,
    n_columns, qk_scale, DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_DIM_V: tl.constexpr, BLOCK_C: tl.constexpr, USE_TMA: tl.constexpr, HAS_TAIL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Stream all extra columns through the same online softmax; `mass` is the sum of their
    exponentials."""
    for c in range(0, n_columns, BLOCK_C):
        # terms: [BLOCK_C] float32, log2 e * bias or -inf; the row is padded to whole tiles
        add = tl.load(terms_ptr + c + tl.arange(0, BLOCK_C))
        # k: [BLOCK_C, HEAD_DIM]
        k = load_tile(k_desc, k_ptr, stride_ks, b, h, c, n_columns, DIM, BLOCK_C, HEAD_DIM, USE_TMA)
        s = scores(q, k, PRECISION) * qk_scale + add[None, :]
        # v: [BLOCK_C, HEAD_DIM_V]
        v = load_tile(
            v_desc, v_ptr, stride_vs, b, h, c, n_columns, DIM_V, BLOCK_C, HEAD_DIM_V, USE_TMA
        )
        new_peak = tl.maximum(peak, tl.max(s, 1))
        p = tl.exp2(s - new_peak[:, None])
        alpha = tl.exp2(peak - new_peak)
        row_sum = tl.sum(p, 1)
        total = total * alpha + row_sum
        if HAS_TAIL:
            # the columns' mass moves with the running maximum as everything else does
            mass = mass * alpha + row_sum
        acc = dot(p.to(v.dtype), v, acc * alpha[:, None], PRECISION)
        peak = new_peak
    return acc, total, peak, mass


@triton.jit
def scan_list(
    list_ptr, count, offsets_ptr, tokens, first_seen, last_seen, SIZE: tl.constexpr, BLOCK_N:
    tl.constexpr, IS_UNIFORM: tl.constexpr, IS_CAUSAL: tl.constexpr, HAS_FULL: tl.constexpr,
):  # fmt: skip
    """Split a list: the first `split` entries need no mask; entries up to `stop` make `tiles`
    masked tiles.

    first_seen, last_seen: last key position seen by the first and the last query of the tile
        (causal).
    """
    SCAN: tl.constexpr = 128
    TILES: tl.constexpr = (SIZE + BLOCK_N - 1) // BLOCK_N
    split = count
    stop = count * 0
    tiles = count * 0
    for base in range(0, count, SCAN):
        at = base + tl.arange(0, SCAN)
        live = at < count
        block = tl.load(list_ptr + at, mask=live, other=0)
        start, end = block_range(block, offsets_ptr, tokens, SIZE, IS_UNIFORM, live)
        full = start + SIZE <= tokens
        seen = live
        if IS_CAUSAL:
            full = full & (start + SIZE - 1 <= first_seen)
            seen = seen & (start <= last_seen)
            end = tl.minimum(end, last_seen + 1)
        split = tl.minimum(split, tl.min(tl.where(live & (full == 0), at, count), 0))
        stop = tl.maximum(stop, tl.max(tl.where(seen, at + 1, 0), 0))
        # a block without visible keys still costs the walk one (masked) tile
        steps = tl.maximum((end - start + BLOCK_N - 1) // BLOCK_N, 1)
        tiles += tl.sum(tl.where(live, steps, 0), 0)
    if not HAS_FULL:
        split = split * 0
    split = tl.minimum(split, stop)
    if IS_UNIFORM:
        tiles = (stop - split) * TILES
    return split, stop, tiles


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
    acc, total, peak, q, q_rows, k_desc, v_desc, k_ptr, v_ptr, stride_ks, stride_vs, b, h,
    list_ptr, entry, stop, tiles, offsets_ptr, s_q, s_kv, last_seen, qk_scale, SIZE: tl.constexpr,
    DIM: tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr,
    BLOCK_N: tl.constexpr, USE_TMA: tl.constexpr, IS_UNIFORM: tl.constexpr, IS_CAUSAL:
    tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to entries [entry, stop) in `tiles` masked tiles: short, variable or causal blocks."""
    live = entry < stop
    block = tl.load(list_ptr + entry, mask=live, other=0)
    start, end = block_range(block, offsets_ptr, s_kv, SIZE, IS_UNIFORM, live)
    for _ in range(0, tiles):
        cols = start + tl.arange(0, BLOCK_N)
        # k: [BLOCK_N, HEAD_DIM]; rows past the block are other keys, hidden below
        k = load_tile(k_desc, k_ptr, stride_ks, b, h, start, end, DIM, BLOCK_N, HEAD_DIM, USE_TMA)
        s = scores(q, k, PRECISION)
        seen = (cols < end)[None, :]
        if IS_CAUSAL:
            seen = seen & (cols[None, :] <= (q_rows + (s_kv - s_q))[:, None])
        s = tl.where(seen, s, float("-inf"))
        # v: [BLOCK_N, HEAD_DIM_V]
        v = load_tile(
            v_desc, v_ptr, stride_vs, b, h, start, end, DIM_V, BLOCK_N, HEAD_DIM_V, USE_TMA
        )
        acc, total, peak = softmax_step(acc, total, peak, s, v, qk_scale, PRECISION)
        start += BLOCK_N
        past = start >= (tl.minimum(end, last_seen + 1) if IS_CAUSAL else end)
        entry += past.to(tl.int32)
        live = entry < stop
        block = tl.load(list_ptr + entry, mask=live, other=0)
        next_start, end = block_range(block, offsets_ptr, s_kv, SIZE, IS_UNIFORM, live)
        start = tl.where(past, next_start, start)
    return acc, total, peak


@triton.jit
def add_tail(
    acc, q_ptr, stride_qs, q_rows, q_end, tail_ptr, stride_td, weight, DIM: tl.constexpr, DIM_V:
    tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return acc + weight * q @ tail, in slices of the head dim: all of q as a register operand
    would spill."""
    for d in tl.range(0, HEAD_DIM, 16, num_stages=1):
        dims = d + tl.arange(0, 16)
        inside = (q_rows < q_end)[:, None] & (dims < DIM)[None, :]
        # q: [BLOCK_M, 16], tail: [16, HEAD_DIM_V]
        at = q_ptr + q_rows.to(tl.int64)[:, None] * stride_qs + dims[None, :]
        part = tl.load(at, mask=inside, other=0.0)
        t = load_rows(tail_ptr, stride_td, dims, dims < DIM, DIM_V, HEAD_DIM_V)
        part = (part.to(tl.float32) * weight[:, None]).to(part.dtype)
        acc = dot(part, t.to(part.dtype), acc, PRECISION)
    return acc
