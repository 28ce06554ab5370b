"""Triton kernels of decoding: one new query of a sequence over listed pages, and scores of pages.

One program per (key head, share of its list): the query heads of the key head are the rows of one
tile, so that a key is read once for all of them. A second launch merges the shares by their
log-sum-exps; where the hardware can, it starts before the first one ends and waits for it.
Launched by decode.py, which states formulas, shapes and limits.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dit_sparse.kernels._jit import load_rows, scores, softmax_step


@triton.jit
def page_of(list_ptr, table_ptr, at, stop, PAGE: tl.constexpr, HAS_TABLE: tl.constexpr):
    """Return the id of the page of each listed token `at`, and where the page stands."""
    live = at < stop
    page = tl.load(list_ptr + at // PAGE, mask=live, other=0)
    place = page
    if HAS_TABLE:
        place = tl.load(table_ptr + page, mask=live, other=0)
    return page, place


@triton.jit
def load_tokens(
    ptr, stride_p, stride_s, place, inner, live, DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Load [BLOCK_N, BLOCK_D] tokens `inner` of the pages at `place`; zeros where not live."""
    cols = tl.arange(0, BLOCK_D)
    at = place.to(tl.int64) * stride_p + inner * stride_s
    mask = live[:, None] & (cols < DIM)[None, :]
    return tl.load(ptr + at[:, None] + cols[None, :], mask=mask, other=0.0)


@triton.jit
def decode_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, count_ptr, index_ptr, table_ptr, lengths_ptr,
    choice_ptr, stride_qb, stride_qh, stride_kb, stride_kh, stride_kp, stride_ks, stride_vb,
    stride_vh, stride_vp, stride_vs, stride_ob, stride_oh, stride_op, stride_lb, stride_lh,
    stride_cb, stride_ch, stride_tb, kv_heads, group, capacity, tokens, splits, scale, DIM:
    tl.constexpr, DIM_V: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_V: tl.constexpr, PAGE:
    tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_COUNT: tl.constexpr,
    HAS_TABLE: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_CHOICE: tl.constexpr, HAS_EARLY:
    tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    if HAS_EARLY:
        gdc_launch_dependents()
    split = tl.program_id(0) % splits
    bh = tl.program_id(0) // splits
    b = (bh // kv_heads).to(tl.int64)
    hk = (bh % kv_heads).to(tl.int64)
    row = tl.arange(0, BLOCK_M)
    heads = hk * group + row
    mine = row < group
    # q: [BLOCK_M, HEAD_DIM], the query heads of one key head
    q = load_rows(q_ptr + b * stride_qb, stride_qh, heads, mine, DIM, HEAD_DIM)
    length = tokens
    if HAS_LENGTHS:
        length = tl.load(lengths_ptr + b)
    list_ptr = index_ptr + bh.to(tl.int64) * capacity
    stop = capacity * PAGE
    if HAS_COUNT:
        stop = tl.minimum(tl.load(count_ptr + bh), capacity) * PAGE
    # whole tiles for each share
    share = tl.cdiv(tl.cdiv(stop, BLOCK_N), splits) * BLOCK_N
    first = split * share
    stop = tl.minimum(stop, first + share)
    k_ptr += b * stride_kb + hk * stride_kh
    v_ptr += b * stride_vb + hk * stride_vh
    table_ptr += b * stride_tb
    choice_ptr += b * stride_cb + heads * stride_ch
    qk_scale = scale * 1.4426950408889634
    acc = tl.zeros([BLOCK_M, HEAD_DIM_V], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # finite, so that exp2(-inf - peak) is 0 and never nan
    peak = tl.full([BLOCK_M], -1.0e38, tl.float32)
    at = first + tl.arange(0, BLOCK_N)
    page, place = page_of(list_ptr, table_ptr, at, stop, PAGE, HAS_TABLE)
    for base in range(first, stop, BLOCK_N):
        at = base + tl.arange(0, BLOCK_N)
        inner = at % PAGE
        live = (at < stop) & (page * PAGE + inner < length)
        # k: [BLOCK_N, HEAD_DIM]
        k = load_tokens(k_ptr, stride_kp, stride_ks, place, inner, live, DIM, HEAD_DIM)
        seen = live[None, :]
        if HAS_CHOICE:
            own = tl.load(choice_ptr[:, None] + page[None, :], mask=mine[:, None] & seen, other=0)
            seen = own != 0
        s = tl.where(seen, scores(q, k, PRECISION), float("-inf"))
        # v: [BLOCK_N, HEAD_DIM_V]
        v = load_tokens(v_ptr, stride_vp, stride_vs, place, inner, live, DIM_V, HEAD_DIM_V)
        # pages of the next tile are on their way while this one computes
        page, place = page_of(list_ptr, table_ptr, at + BLOCK_N, stop, PAGE, HAS_TABLE)
        acc, total, peak = softmax_step(acc, total, peak, s, v, qk_scale, PRECISION)
    safe = tl.where(total > 0, total, 1.0)
    lse = tl.where(total > 0, (peak + tl.log2(safe)) * 0.6931471805599453, float("-inf"))
    tl.store(lse_ptr + b * stride_lb + heads * stride_lh + split, lse, mask=mine)
    cols = tl.arange(0, HEAD_DIM_V)
    out_ptr += b * stride_ob + split.to(tl.int64) * stride_op
    at_out = out_ptr + heads[:, None] * stride_oh + cols[None, :]
    acc = acc * (1.0 / safe)[:, None]
    mask = mine[:, None] & (cols < DIM_V)[None, :]
    tl.store(at_out, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def merge_kernel(
    part_ptr, height_ptr, out_ptr, lse_ptr, stride_ob, stride_oh, heads, splits, DIM_V:
    tl.constexpr, HEAD_DIM_V: tl.constexpr, SPLITS: tl.constexpr, HAS_EARLY: tl.constexpr,
):  # fmt: skip
    if HAS_EARLY:
        # all that the shares wrote is visible then
        gdc_wait()
    bh = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, SPLITS)
    cols = tl.arange(0, HEAD_DIM_V)
    some = part < splits
    # height: [SPLITS], x: [SPLITS, HEAD_DIM_V] float32
    height = tl.load(height_ptr + bh * splits + part, mask=some, other=float("-inf"))
    at = part_ptr + (bh * splits + part)[:, None] * DIM_V + cols[None, :]
    x = tl.load(at, mask=some[:, None] & (cols < DIM_V)[None, :], other=0.0)
    peak = tl.maximum(tl.max(height, 0), -1.0e38)
    weight = tl.exp2((height - peak) * 1.4426950408889634)
    total = tl.sum(weight, 0)
    safe = tl.where(total > 0, total, 1.0)
    out = tl.sum(x * weight[:, None], 0) / safe
    out_ptr += (bh // heads) * stride_ob + (bh % heads) * stride_oh
    tl.store(out_ptr + cols, out.to(out_ptr.dtype.element_ty), mask=cols < DIM_V)
    lse = tl.where(total > 0, peak + tl.log2(safe) * 0.6931471805599453, float("-inf"))
    tl.store(lse_ptr + bh, lse)


@triton.jit
def score_kernel(
    q_ptr, k_ptr, out_ptr, stride_qb, stride_qh, stride_kb, stride_kh, stride_ks, kv_heads, group,
    tokens, pages, DIM: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, PAGES:
    tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1)
    b = (bh // kv_heads).to(tl.int64)
    hk = (bh % kv_heads).to(tl.int64)
    row = tl.arange(0, BLOCK_M)
    # q: [BLOCK_M, HEAD_DIM] -> their mean [HEAD_DIM]
    q = load_rows(
        q_ptr + b * stride_qb, stride_qh, hk * group + row, row < group, DIM, HEAD_DIM
    ).to(tl.float32)
    mean = tl.sum(q, 0) / group
    at = tl.arange(0, PAGES * WIDTH)
    page = tl.program_id(0) * PAGES + at // WIDTH
    token = page * PAGE + at % WIDTH
    live = (at % WIDTH < PAGE) & (token < tokens)
    # k: [PAGES * WIDTH, HEAD_DIM]
    k = load_rows(k_ptr + b * stride_kb + hk * stride_kh, stride_ks, token, live, DIM, HEAD_DIM)
    dots = tl.sum(k.to(tl.float32) * mean[None, :], 1)
    page = tl.program_id(0) * PAGES + tl.arange(0, PAGES)
    size = tl.minimum(tokens - page * PAGE, PAGE)
    total = tl.sum(tl.reshape(dots, (PAGES, WIDTH)), 1)
    score = total / tl.maximum(size, 1).to(tl.float32)
    tl.store(out_ptr + bh.to(tl.int64) * pages + page, score, mask=page < pages)
