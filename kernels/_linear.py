"""Triton kernels of the linear branch: block states, sums of them per query block, and the join.

    state   h_j = phi(K_j)^T V_j and z_j, one program per key block
    choose  seen as 0 and 1, and Z_i = sum_j z_j, one program per BLOCK_M query blocks
    join    O_s + (phi(Q_i) H_i / phi(Q_i) . Z_i) W^T + b in place, one program per query block

phi is taken in float32, in registers, and rounded to DTYPE. z adds the rounded features, those that
h holds, so that O_l stays a weighted mean of the values. Launched by linear_passes.py. Limits: head
dims up to 128. No sum depends on the order of programs.
"""

import triton
import triton.language as tl

from dit_sparse.kernels._jit import block_range, dot, load_rows, store_rows
from dit_sparse.kernels._launch import own_block


@triton.jit
def feature(x, keep, DTYPE: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, PHI:
    tl.constexpr):  # fmt: skip
    """Return phi of the rows of x [n, BLOCK_D], rounded to DTYPE; 0 in rows not kept."""
    x = x.to(tl.float32)
    live = keep[:, None]
    if DIM != BLOCK_D:
        inside = (tl.arange(0, BLOCK_D) < DIM)[None, :]
        x = tl.where(inside, x, float("-inf"))
        live = live & inside
    if PHI == "softmax":
        y = tl.exp(x - tl.max(x, 1)[:, None])
        y = y / tl.sum(y, 1)[:, None]
    elif PHI == "elu":
        y = tl.where(x > 0, x + 1, tl.exp(x))
    else:
        y = tl.where(x < 0, 0.0, x)
    return tl.where(live, y, 0.0).to(DTYPE)


@triton.jit
def key_tile(
    k_ptr, v_ptr, stride_ks, stride_vs, first, end, DTYPE: tl.constexpr, DIM: tl.constexpr, DIM_V:
    tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, TILE: tl.constexpr, PHI:
    tl.constexpr,
):  # fmt: skip
    """Return phi(k) [TILE, BLOCK_D] and v [TILE, BLOCK_V] of the tokens from `first` on, 0 from
    `end` on."""
    rows = first + tl.arange(0, TILE)
    k = load_rows(k_ptr, stride_ks, rows, rows < end, DIM, BLOCK_D)
    v = load_rows(v_ptr, stride_vs, rows, rows < end, DIM_V, BLOCK_V)
    return feature(k, rows < end, DTYPE, DIM, BLOCK_D, PHI), v.to(DTYPE)


@triton.jit
def state_kernel(
    k_ptr, v_ptr, state_ptr, norm_ptr, offsets_ptr, stride_kb, stride_kh, stride_ks, stride_vb,
    stride_vh, stride_vs, stride_fb, stride_fh, heads, blocks, padded, tokens, DTYPE: tl.constexpr,
    DIM: tl.constexpr, DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, SIZE:
    tl.constexpr, TILE: tl.constexpr, IS_UNIFORM: tl.constexpr, PHI: tl.constexpr, PRECISION:
    tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) % padded
    bh = tl.program_id(0) // padded
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    k_ptr += b * stride_kb + h * stride_kh
    v_ptr += b * stride_vb + h * stride_vh
    offsets_ptr += b * stride_fb + h * stride_fh
    # blocks past the last one are empty: their states are zeros
    start, end = block_range(block, offsets_ptr, tokens, SIZE, IS_UNIFORM, block < blocks)
    state = tl.zeros([BLOCK_D, BLOCK_V], tl.float32)
    norm = tl.zeros([BLOCK_D], tl.float32)
    if SIZE <= TILE:
        # straight to registers: nothing loads ahead
        k, v = key_tile(
            k_ptr, v_ptr, stride_ks, stride_vs, start, end, DTYPE, DIM, DIM_V, BLOCK_D, BLOCK_V,
            TILE, PHI,
        )  # fmt: skip
        state = dot(tl.trans(k), v, state, PRECISION)
        norm += tl.sum(k.to(tl.float32), 0)
    else:
        for first in range(start, end, TILE):
            k, v = key_tile(
                k_ptr, v_ptr, stride_ks, stride_vs, first, end, DTYPE, DIM, DIM_V, BLOCK_D,
                BLOCK_V, TILE, PHI,
            )  # fmt: skip
            state = dot(tl.trans(k), v, state, PRECISION)
            norm += tl.sum(k.to(tl.float32), 0)
    d = tl.arange(0, BLOCK_D)
    own = tl.program_id(0).to(tl.int64)
    tl.store(norm_ptr + own * DIM + d, norm, mask=d < DIM)
    store_rows(state_ptr + own * DIM * DIM_V, DIM_V, d, d < DIM, state, DIM_V, BLOCK_V)


@triton.jit
def choose_kernel(
    seen_ptr, part_ptr, choice_ptr, norm_ptr, stride_sb, stride_sh, groups, rows, blocks, padded,
    DTYPE: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N:
    tl.constexpr, IS_HALVED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(rows, BLOCK_M)
    bh = tl.program_id(0) // tiles
    row = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    b = (bh // groups).to(tl.int64)
    h = (bh % groups).to(tl.int64)
    own = bh.to(tl.int64) * rows + row
    seen_ptr += b * stride_sb + h * stride_sh
    # part: [padded, DIM] of this key head
    part_ptr += bh.to(tl.int64) * padded * DIM
    norm = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for base in range(0, padded, BLOCK_N):
        at = base + tl.arange(0, BLOCK_N)
        # seen: [BLOCK_M, BLOCK_N] int8
        here = (row < rows)[:, None] & (at < blocks)[None, :]
        place = seen_ptr + row.to(tl.int64)[:, None] * blocks + at[None, :]
        seen = tl.load(place, mask=here, other=0).to(tl.float32).to(DTYPE)
        mask = (row < rows)[:, None] & (at < padded)[None, :]
        tl.store(choice_ptr + own[:, None] * padded + at[None, :], seen, mask=mask)
        # z: [BLOCK_N, BLOCK_D]
        z = load_rows(part_ptr, DIM, at, at < padded, DIM, BLOCK_D)
        # z in two bfloat16 numbers of 8 bits each; float32 is split by `dot` itself
        high = z.to(DTYPE)
        norm = dot(seen, high, norm, PRECISION)
        if IS_HALVED:
            norm = dot(seen, (z - high.to(tl.float32)).to(DTYPE), norm, PRECISION)
    store_rows(norm_ptr, DIM, own, row < rows, norm, DIM, BLOCK_D)


@triton.jit
def load_part(ptr, stride, rows, keep, cols, DIM: tl.constexpr):
    """Load some columns of some rows; zeros where a row is not kept or a column is past DIM."""
    at = ptr + rows.to(tl.int64)[:, None] * stride + cols[None, :]
    return tl.load(at, mask=keep[:, None] & (cols < DIM)[None, :], other=0.0)


@triton.jit
def join_kernel(
    out_ptr, q_ptr, state_ptr, norm_ptr, weight_ptr, bias_ptr, alpha_ptr, offsets_ptr, stride_ob,
    stride_oh, stride_os, stride_qb, stride_qh, stride_qs, stride_sb, stride_sh, stride_sm,
    stride_nb, stride_nh, stride_nm, stride_ab, stride_ah, stride_am, stride_fb, stride_fh, heads,
    group, blocks, tokens, eps, DTYPE: tl.constexpr, DIM: tl.constexpr, DIM_V: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr,
    IS_UNIFORM: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ALPHA:
    tl.constexpr, PHI: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b, h, _, start, end = own_block(
        offsets_ptr, stride_fb, stride_fh, heads, blocks, tokens, SIZE, IS_UNIFORM
    )
    m = (tl.program_id(0) % blocks).to(tl.int64)
    out_ptr += b * stride_ob + h * stride_oh
    q_ptr += b * stride_qb + h * stride_qh
    state_ptr += b * stride_sb + h // group * stride_sh + m * stride_sm
    norm_ptr += b * stride_nb + h // group * stride_nh + m * stride_nm
    d = tl.arange(0, BLOCK_D)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    # state: [BLOCK_D, BLOCK_E], norm: [BLOCK_D]
    state = load_part(state_ptr, DIM_V, d, d < DIM, e, DIM_V)
    norm = tl.load(norm_ptr + d, mask=d < DIM, other=0.0)
    if HAS_WEIGHT:
        # weight: [BLOCK_E, BLOCK_E], all columns in one program
        weight = load_part(weight_ptr, DIM_V, e, e < DIM_V, e, DIM_V)
    for first in range(start, end, TILE):
        rows = first + tl.arange(0, TILE)
        # q: [TILE, BLOCK_D]
        q = load_rows(q_ptr, stride_qs, rows, rows < end, DIM, BLOCK_D)
        q = feature(q, rows < end, DTYPE, DIM, BLOCK_D, PHI)
        mass = tl.sum(q.to(tl.float32) * norm[None, :], 1)[:, None] + eps
        zero = tl.zeros([TILE, BLOCK_E], tl.float32)
        new = dot(q, state, zero, PRECISION)
        new = tl.where(mass > 0, new / tl.where(mass > 0, mass, 1.0), 0.0)
        if HAS_WEIGHT:
            new = dot(new.to(DTYPE), tl.trans(weight), zero, PRECISION)
        if HAS_BIAS:
            new += tl.load(bias_ptr + e, mask=e < DIM_V, other=0.0)[None, :]
        # out: [TILE, BLOCK_E]
        out = load_part(out_ptr, stride_os, rows, rows < end, e, DIM_V).to(tl.float32)
        if HAS_ALPHA:
            alpha = tl.load(alpha_ptr + b * stride_ab + h * stride_ah + m * stride_am)
            new = tl.where(mass > 0, 1 - alpha, 0.0) * (new - out)
        at = out_ptr + rows.to(tl.int64)[:, None] * stride_os + e[None, :]
        new = (out + new).to(out_ptr.dtype.element_ty)
        tl.store(at, new, mask=(rows < end)[:, None] & (e < DIM_V)[None, :])
