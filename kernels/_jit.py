"""Triton primitives shared by the kernels: block bounds, tile loads, online-softmax step, list
scan."""

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
def query_tile(
    tile, table_ptr, offsets_ptr, tokens, SIZE: tl.constexpr, BLOCK: tl.constexpr, HAS_TABLE:
    tl.constexpr, IS_UNIFORM: tl.constexpr,
):  # fmt: skip
    """Row of a query tile, its first token, and the past-the-end token of its block."""
    TILES: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    if HAS_TABLE:
        # table: [2] int32
        row = tl.load(table_ptr + tile * 2)
        start = tl.load(table_ptr + tile * 2 + 1)
        end = tl.load(offsets_ptr + row + 1)
    else:
        row = tile // TILES
        start, end = block_range(row, offsets_ptr, tokens, SIZE, IS_UNIFORM, True)
        start += (tile % TILES) * BLOCK
    return row, start, end


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
def store_rows(ptr, stride, rows, keep, x, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Store x [rows, BLOCK_D] by pointers where a row is kept and a column is below DIM."""
    cols = tl.arange(0, BLOCK_D)
    at = ptr + rows.to(tl.int64)[:, None] * stride + cols[None, :]
    tl.store(at, x.to(ptr.dtype.element_ty), mask=keep[:, None] & (cols < DIM)[None, :])


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
def chosen_step(acc, total, peak, s, v, chosen, qk_scale, PRECISION: tl.constexpr):
    """Fold as softmax_step does, for the queries `chosen` [M] alone: no mask on single logits."""
    new_peak = tl.maximum(peak, tl.where(chosen, tl.max(s, 1) * qk_scale, float("-inf")))
    p = tl.exp2(s * qk_scale - tl.where(chosen, new_peak, float("inf"))[:, None])
    alpha = tl.exp2(peak - new_peak)
    total = total * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    acc = dot(p.to(v.dtype), v, acc, PRECISION)
    return acc, total, new_peak


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
def ordered(x):
    """Return float32 as unsigned integers of the same order, above 0; -0 is 0, NaN the largest."""
    # a sum with 0 has no -0
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    key = (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)
    return tl.where(x != x, tl.full(key.shape, 0xFFFFFFFF, tl.uint32), key)


@triton.jit
def unordered(key):
    """Return the float32 that `ordered` made an integer of."""
    bits = tl.where(key >> 31 != 0, key ^ 0x80000000, key ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)
