"""Triton kernels of two one-pass tools: block moments, and addends of extra columns.

One program per (chunk of blocks, side of v, head) or row of addends; float32 accumulation. Launched
by pool.py and the attention kernels, which state formulas, shapes and users. Limits: head dims up
to 128.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import block_range, dot, load_rows, store_rows
from dit_sparse.kernels._launch import dense_rows, head_offsets, precision
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import Columns, Cut, per_head


@triton.jit
def moved_rows(
    ptr, order_ptr, out_ptr, stride, out_stride, rows, end, written, DIM: tl.constexpr, BLOCK_D:
    tl.constexpr, HAS_ORDER: tl.constexpr,
):  # fmt: skip
    """Load arranged rows up to `end`; with an order, write those below `written` where they now
    stand."""
    place = rows
    if HAS_ORDER:
        place = tl.load(order_ptr + rows, mask=rows < end, other=0)
    x = load_rows(ptr, stride, place, rows < end, DIM, BLOCK_D)
    if HAS_ORDER:
        store_rows(out_ptr, out_stride, rows, rows < written, x, DIM, BLOCK_D)
    return x


@triton.jit
def moments_kernel(
    k_ptr, v_ptr, kbar_ptr, vbar_ptr, part_ptr, square_ptr, offsets_ptr, order_ptr, k_out_ptr,
    v_out_ptr, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs, stride_fb,
    stride_fh, stride_ib, stride_ih, heads, blocks, summed_blocks, tokens, chunks, chunk, DIM:
    tl.constexpr, DIM_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, SIDES:
    tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, IS_UNIFORM: tl.constexpr, HAS_ORDER:
    tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # the two sides of v of the same blocks run together and read k from L2
    side = tl.program_id(0) % SIDES
    part = tl.program_id(0) // SIDES % chunks
    bh = tl.program_id(0) // SIDES // chunks
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    WIDTH: tl.constexpr = DIM_V // SIDES
    k_ptr += b * stride_kb + h * stride_kh
    v_ptr += b * stride_vb + h * stride_vh + side * WIDTH
    order_ptr += b * stride_ib + h * stride_ih
    k_out_ptr += bh.to(tl.int64) * tokens * DIM
    v_out_ptr += bh.to(tl.int64) * tokens * DIM_V + side * WIDTH
    vbar_ptr += side * WIDTH
    part_ptr += (bh.to(tl.int64) * chunks + part) * DIM * DIM_V + side * WIDTH
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_V)
    summed = tl.zeros([BLOCK_D, BLOCK_V], tl.float32)
    for block in range(part * chunk, tl.minimum((part + 1) * chunk, blocks)):
        start, end = block_range(
            block, offsets_ptr + b * stride_fb + h * stride_fh, tokens, SIZE, IS_UNIFORM, True
        )
        # what both sides have is written by the first
        written = tl.where(side == 0, end, 0)
        if SIZE <= TILE:
            # no inner loop: the tiles of the next blocks load while this one computes
            rows = start + tl.arange(0, TILE)
            # k: [TILE, BLOCK_D], v: [TILE, BLOCK_V]
            k = moved_rows(
                k_ptr, order_ptr, k_out_ptr, stride_ks, DIM, rows, end, written, DIM,
                BLOCK_D, HAS_ORDER,
            )  # fmt: skip
            v = moved_rows(
                v_ptr, order_ptr, v_out_ptr, stride_vs, DIM_V, rows, end, end, WIDTH,
                BLOCK_V, HAS_ORDER,
            )  # fmt: skip
            outer = dot(tl.trans(k), v, tl.zeros([BLOCK_D, BLOCK_V], tl.float32), PRECISION)
            k_sum = tl.sum(k.to(tl.float32), 0)
            v_sum = tl.sum(v.to(tl.float32), 0)
        else:
            outer = tl.zeros([BLOCK_D, BLOCK_V], tl.float32)
            k_sum = tl.zeros([BLOCK_D], tl.float32)
            v_sum = tl.zeros([BLOCK_V], tl.float32)
            for first in range(start, end, TILE):
                rows = first + tl.arange(0, TILE)
                k = moved_rows(
                    k_ptr, order_ptr, k_out_ptr, stride_ks, DIM, rows, end, written, DIM,
                    BLOCK_D, HAS_ORDER,
                )  # fmt: skip
                v = moved_rows(
                    v_ptr, order_ptr, v_out_ptr, stride_vs, DIM_V, rows, end, end, WIDTH,
                    BLOCK_V, HAS_ORDER,
                )  # fmt: skip
                outer = dot(tl.trans(k), v, outer, PRECISION)
                k_sum += tl.sum(k.to(tl.float32), 0)
                v_sum += tl.sum(v.to(tl.float32), 0)
        count = tl.maximum(end - start, 1).to(tl.float32)
        # sum (k - kbar)^T v = k^T v - n kbar^T vbar, in float32: no rounding of centred keys
        outer -= k_sum[:, None] * (v_sum / count)[None, :]
        summed += tl.where(block < summed_blocks, outer, 0.0)
        at = bh.to(tl.int64) * blocks + block
        tl.store(kbar_ptr + at * DIM + d, k_sum / count, mask=d < tl.where(side == 0, DIM, 0))
        tl.store(vbar_ptr + at * DIM_V + e, v_sum / count, mask=e < WIDTH)
        tl.store(square_ptr + at * SIDES + side, tl.sum(tl.sum(outer * outer, 1), 0))
    at = d[:, None] * DIM_V + e[None, :]
    tl.store(part_ptr + at, summed, mask=(d < DIM)[:, None] & (e < WIDTH)[None, :])


@triton.jit
def gather_kernel(
    part_ptr, square_ptr, total_ptr, norm_ptr, heads, chunks, entries, norms, SIDES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the matrices of all programs of a head, and the squares of both sides of a block."""
    tiles = tl.cdiv(entries, BLOCK)
    matrices = heads * tiles
    program = tl.program_id(0)
    if program < matrices:
        at = program % tiles * BLOCK + tl.arange(0, BLOCK)
        h = (program // tiles).to(tl.int64)
        total = tl.zeros([BLOCK], tl.float32)
        for chunk in range(chunks):
            place = (h * chunks + chunk) * entries + at
            total += tl.load(part_ptr + place, mask=at < entries, other=0.0)
        tl.store(total_ptr + h * entries + at, total, mask=at < entries)
    else:
        at = (program - matrices) * BLOCK + tl.arange(0, BLOCK)
        square = tl.zeros([BLOCK], tl.float32)
        for side in tl.static_range(SIDES):
            square += tl.load(square_ptr + at * SIDES + side, mask=at < norms, other=0.0)
        tl.store(norm_ptr + at, tl.sqrt(square), mask=at < norms)


@triton.jit
def terms_kernel(
    bias_ptr, mask_ptr, out_ptr, stride_bb, stride_bh, stride_mb, stride_mh, stride_mm, heads,
    rows, n, padded, HAS_BIAS: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) % rows
    bh = tl.program_id(0) // rows
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    bias_ptr += b * stride_bb + h * stride_bh
    mask_ptr += b * stride_mb + h * stride_mh + row.to(tl.int64) * stride_mm
    out_ptr += tl.program_id(0).to(tl.int64) * padded
    for base in range(0, padded, BLOCK):
        at = base + tl.arange(0, BLOCK)
        seen = at < n
        add = tl.zeros([BLOCK], tl.float32)
        if HAS_BIAS:
            add = tl.load(bias_ptr + at, mask=seen, other=0.0) * 1.4426950408889634
        if HAS_MASK:
            seen = tl.load(mask_ptr + at, mask=seen, other=0) != 0
        tl.store(out_ptr + at, tl.where(seen, add, float("-inf")), mask=at < padded)


def block_moments(
    k: Tensor, v: Tensor, cut: Cut, order: Tensor | None = None, summed: int | None = None
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Launch moments_kernel; see pool.block_moments and pool.moved_moments.

    order: [B or 1, H or 1, S]; summed: the blocks that count in the sum of covariances. Returns the
    moments of all blocks, and k and v in order.
    """
    k, v = dense_rows(k), dense_rows(v)
    batch, heads, tokens, dim = k.shape
    order_, k_out, v_out = k, k, v
    if order is not None:
        order_ = order.contiguous().expand(batch, heads, tokens)
        k_out, v_out = (torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (k, v))
    dim_v, blocks = v.shape[3], cut.count(tokens)
    sides = 2 if dim_v == 128 else 1
    chunk = _chunk(blocks, batch * heads * sides)
    chunks = -(-blocks // chunk)
    f32 = {"device": k.device, "dtype": torch.float32}
    kbar, vbar = (torch.empty(batch, heads, blocks, n, **f32) for n in (dim, dim_v))
    part = torch.empty(batch, heads, chunks, dim, dim_v, **f32)
    square = torch.empty(batch, heads, blocks, sides, **f32)
    offsets = head_offsets(cut, k)
    moments_kernel[(batch * heads * chunks * sides,)](
        k, v, kbar, vbar, part, square, offsets, order_, k_out, v_out, *k.stride()[:3],
        *v.stride()[:3], *offsets.stride()[:2], *order_.stride()[:2], heads, blocks,
        blocks if summed is None else summed, tokens, chunks, chunk, DIM=dim, DIM_V=dim_v,
        BLOCK_D=power_of_2(dim), BLOCK_V=power_of_2(dim_v // sides), SIDES=sides, SIZE=cut.size,
        TILE=min(64 if k.element_size() == 2 else 32, power_of_2(cut.size)),
        IS_UNIFORM=cut.offsets is None, HAS_ORDER=order is not None, PRECISION=precision(),
        num_warps=4,
    )  # fmt: skip
    total = torch.empty(batch, heads, dim, dim_v, **f32)
    norm = torch.empty(batch, heads, blocks, **f32)
    tiles = -(-dim * dim_v // 1024) * batch * heads, -(-norm.numel() // 1024)
    gather_kernel[(sum(tiles),)](
        part, square, total, norm, batch * heads, chunks, dim * dim_v, norm.numel(), SIDES=sides,
        BLOCK=1024, num_warps=4,
    )  # fmt: skip
    return (kbar, vbar, total, norm), k_out, v_out


def _chunk(blocks: int, rows: int) -> int:
    """Return how many blocks one program takes, of `rows` rows of them.

    Programs of a large GPU run 396 at a time: as few of these rounds as need be, of few blocks. A
    program ends by writing a matrix, which costs as much as about two blocks.
    """

    def cost(chunks: int) -> int:
        return -(-rows * chunks // 396) * (-(-blocks // chunks) + 2)

    return -(-blocks // min(range(1, -(-blocks // 16) + 1), key=cost))


def column_terms(columns: Columns, heads: int, rows: int, block: int) -> Tensor:
    """Return log2 e * bias, -inf where hidden, as float32 [B, H, M, C2 padded to `block`].

    One addend for the attention kernel's inner loop; axes that every input shares have stride 0.
    """
    bias, mask, k = columns.bias, columns.mask, columns.k
    n, padded = k.shape[2], -(-k.shape[2] // block) * block
    given = [x for x in (bias, mask) if x is not None]
    batch = max([x.shape[0] for x in given], default=1)
    own = heads if any(x.shape[1] > 1 for x in given) else 1
    own_rows = 1 if mask is None else rows
    out = torch.empty(batch, own, own_rows, padded, device=k.device, dtype=torch.float32)
    bias_ = out[:, :, 0] if bias is None else dense_rows(per_head(bias, batch, own))
    mask_ = out if mask is None else dense_rows(per_head(mask, batch, own)).view(torch.int8)
    terms_kernel[(batch * own * own_rows,)](
        bias_, mask_, out, *bias_.stride()[:2], *mask_.stride()[:3], own, own_rows, n, padded,
        HAS_BIAS=bias is not None, HAS_MASK=mask is not None, BLOCK=min(1024, power_of_2(padded)),
        num_warps=4,
    )  # fmt: skip
    return out.expand(k.shape[0], heads, rows, padded)
