"""Triton kernels of selection: rows cut by budgets, and the threshold of a whole head.

`classes_kernel`: one program per row, which it holds in registers; each budget's cut is found bit
by bit on integer keys that order as the scores do. `search_kernel`: the same search over all
entries of a head, some bits per pass, every pass reading fixed chunks. No sort, no atomics, no
host sync; sums are taken in a fixed order, so equal input gives equal output.
Launched by select.py, which states formulas, shapes and users. Limits: rows of 16,384.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._jit import ordered
from dit_sparse.kernels._tune import power_of_2

# search_kernel: a chunk is at least this long; more of them only fill the device
_CHUNK = 4096


@triton.jit
def classes_kernel(
    score_ptr, weight_ptr, budget_ptr, class_ptr, stride_wb, stride_wh, stride_wm, stride_wn,
    stride_gb, stride_gh, stride_gm, stride_gt, heads, rows, n, budgets, floors, BUDGETS:
    tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_TENSOR:
    tl.constexpr, HAS_FLOORS: tl.constexpr, IS_INCLUSIVE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    m = row % rows
    h = row // rows % heads
    b = row // rows // heads
    # rows of a matrix from the start: a vector would change its layout at every bit
    at = tl.arange(0, BLOCK)[None, :]
    inside = at < n
    # score: [1, BLOCK] float32; keys past the row are 0, below every score
    score = tl.load(score_ptr + row * n + at, mask=inside, other=0.0)
    key = tl.where(inside, ordered(score), tl.zeros([1, BLOCK], tl.uint32))
    weight = inside.to(tl.float32)
    if HAS_WEIGHT:
        place = b * stride_wb + h * stride_wh + m * stride_wm + at.to(tl.int64) * stride_wn
        # weight: [1, BLOCK]
        weight = tl.load(weight_ptr + place, mask=inside, other=0).to(tl.float32)
    slot = tl.arange(0, SLOTS)
    limit = tl.zeros([SLOTS], tl.float32)
    floor = tl.zeros([SLOTS], tl.float32)
    if HAS_TENSOR:
        place = b * stride_gb + h * stride_gh + m * stride_gm + slot * stride_gt
        # budgets: [SLOTS]
        limit = tl.load(budget_ptr + place, mask=slot < BUDGETS, other=0).to(tl.float32)
    for t in tl.static_range(BUDGETS):
        if not HAS_TENSOR:
            limit = tl.where(slot == t, budgets[t], limit)
        if HAS_FLOORS:
            floor = tl.where(slot == t, floors[t], floor)
    # per budget the largest key such that all entries below it are past the budget
    edge = tl.zeros([SLOTS], tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    for _ in range(32):
        higher = edge | bit
        ahead = key >= higher[:, None]
        mass = tl.sum(tl.where(ahead, weight, 0.0), 1)
        past = mass > limit if IS_INCLUSIVE else mass >= limit
        if HAS_FLOORS:
            past = past & (tl.sum(ahead.to(tl.float32), 1) >= floor)
        edge = tl.where(past, higher, edge)
        bit = bit >> 1
    level = tl.zeros([1, BLOCK], tl.int32)
    for t in tl.static_range(BUDGETS):
        cut = tl.max(tl.where(slot == t, edge, tl.zeros([SLOTS], tl.uint32)), 0)
        here = tl.sum(tl.where(slot == t, limit, 0.0), 0)
        above = key > cut
        tie = (key == cut) & inside
        # equal scores: by rising index
        own = tl.where(tie, weight, 0.0)
        upto = tl.cumsum(own, 1)
        mass = tl.sum(tl.where(above, weight, 0.0), None)
        late = mass + upto > here if IS_INCLUSIVE else mass + (upto - own) >= here
        if HAS_FLOORS:
            rank = tl.sum(above.to(tl.int32), None) + tl.cumsum(tie.to(tl.int32), 1) - 1
            late = late & (rank.to(tl.float32) >= tl.sum(tl.where(slot == t, floor, 0.0), 0))
        level += ((key < cut) | (tie & late)).to(tl.int32)
    # NaN must show: such a row keeps everything in class 0
    bad = tl.max((inside & ((score != score) | (weight != weight))).to(tl.int32), None)
    level = tl.where(bad != 0, 0, level)
    tl.store(class_ptr + row * n + at, level.to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=["limit", "step"])
def search_kernel(
    value_ptr, limit_ptr, parts_ptr, low_ptr, state_ptr, out_ptr, limit, step, heads, n, chunks,
    chunk, BITS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, IS_FIRST: tl.constexpr,
    IS_LAST: tl.constexpr, IS_COUNT: tl.constexpr, HAS_LIMITS: tl.constexpr,
):  # fmt: skip
    BINS: tl.constexpr = 1 << BITS
    head = (tl.program_id(0) if IS_LAST else tl.program_id(0) // chunks).to(tl.int64)
    part = tl.program_id(0) * 0 if IS_LAST else tl.program_id(0) % chunks
    bins = tl.arange(0, BINS)
    goal = tl.zeros([], tl.float64) + limit
    if HAS_LIMITS:
        goal = tl.load(limit_ptr + head).to(tl.float64)
    prefix = tl.zeros([], tl.int64)
    if not IS_FIRST:
        # every program reads the last pass's parts [chunks, BINS] and settles its digit
        past = parts_ptr + ((1 - step % 2) * heads + head) * chunks * BINS
        total = tl.zeros([BINS], tl.float64)
        for base in range(0, chunks, ROWS):
            c = base + tl.arange(0, ROWS)
            # parts: [ROWS, BINS]
            got = tl.load(past + c[:, None] * BINS + bins[None, :], mask=(c < chunks)[:, None])
            total += tl.sum(tl.where((c < chunks)[:, None], got.to(tl.float64), 0.0), 0)
        # state: [2, steps, heads] the bits so far, and the mass of all entries above them
        old = state_ptr + (step - 1) * 2 * heads + head
        prefix = tl.load(old).to(tl.int64)
        above = tl.load(old + heads)
        reach = above + tl.cumsum(total, 0, reverse=True)
        found = tl.max(tl.where(reach >= goal, bins, -1), 0)
        # only rounding between passes leads to "reached, but by no digit": the lowest one then
        lowest = tl.min(tl.where(total > 0, bins, BINS - 1), 0)
        digit = tl.where(found < 0, lowest, found)
        # taken from the same sums, it stays below the goal
        above = tl.max(tl.where(bins > digit, reach, above), 0)
        if step == 1:
            # all entries together fall short: never reached
            above = tl.where(found < 0, float("-inf"), above)
        prefix = (prefix << BITS) + digit
        if part == 0:
            tl.store(old + 2 * heads, prefix.to(tl.float64))
            tl.store(old + 3 * heads, above)
        if IS_LAST:
            key = prefix.to(tl.uint32)
            bits = tl.where(key >> 31 != 0, key ^ 0x80000000, key ^ 0xFFFFFFFF)
            edge = bits.to(tl.float32, bitcast=True)
            # low: [ROWS] the least entry of each chunk, NaN where one is NaN
            low = tl.full([ROWS], float("inf"), tl.float32)
            for base in range(0, chunks, ROWS):
                c = base + tl.arange(0, ROWS)
                got = tl.load(low_ptr + head * chunks + c, mask=c < chunks, other=float("inf"))
                low = tl.where((got < low) | (got != got), got, low)
            bad = tl.max((low != low).to(tl.int32), 0) != 0
            if not IS_COUNT:
                edge = tl.where(above == float("-inf"), tl.min(low, 0), edge)
                edge = tl.where(goal <= 0, float("inf"), edge)
            edge = tl.where(bad | (goal != goal), float("nan"), edge)
            tl.store(out_ptr + head, edge)
    if not IS_LAST:
        shift = 32 - BITS * (step + 1)
        parts_ptr += ((step % 2 * heads + head) * chunks + part) * BINS
        end = tl.minimum((part + 1) * chunk, n)
        # an accumulator per lane, summed once: [BINS, TILE], or whole numbers [BINS]
        mass = tl.zeros([1 if IS_COUNT else BINS, 1 if IS_COUNT else TILE], tl.float32)
        count = tl.zeros([BINS], tl.int32)
        low = tl.full([1, TILE], float("inf"), tl.float32)
        for base in range(part * chunk, end, TILE):
            at = base + tl.arange(0, TILE)[None, :]
            mine = at < end
            # value: [1, TILE] float32
            value = tl.load(value_ptr + head * n + at, mask=mine, other=float("inf"))
            key = ordered(value)
            bin_ = ((key >> shift.to(tl.uint32)) & (BINS - 1)).to(tl.int32)
            if IS_FIRST:
                low = tl.where((value < low) | (value != value), value, low)
            else:
                mine = mine & (key >> (shift + BITS).to(tl.uint32) == prefix.to(tl.uint32))
            if IS_COUNT:
                count += tl.histogram(bin_.reshape(TILE), BINS, mask=mine.reshape(TILE))
            else:
                mass += tl.where(mine & (bin_ == bins[:, None]), value, 0.0)
        if IS_COUNT:
            tl.store(parts_ptr + bins, count)
        else:
            tl.store(parts_ptr + bins, tl.sum(mass, 1))
        if IS_FIRST:
            bad = tl.max((low != low).to(tl.int32), None) != 0
            least = tl.where(bad, float("nan"), tl.min(low, None))
            tl.store(low_ptr + head * chunks + part, least)


def budget_classes(
    score: Tensor,
    budgets: Tensor | tuple[float, ...],
    weight: Tensor | None,
    floors: Sequence[int] | None,
    inclusive: bool,
) -> Tensor:
    """Launch classes_kernel; see select.budget_classes."""
    score = score.float().contiguous()
    batch, heads, rows, n = score.shape
    given = isinstance(budgets, Tensor)
    count = budgets.shape[-1] if given else len(budgets)
    weight_ = score if weight is None else weight.expand(score.shape)
    budgets_ = budgets.expand(batch, heads, rows, count) if given else score
    classes = torch.empty(score.shape, device=score.device, dtype=torch.int8)
    block, slots = power_of_2(n), 1 << (count - 1).bit_length()
    classes_kernel[(batch * heads * rows,)](
        score, weight_, budgets_, classes, *weight_.stride(), *budgets_.stride(), heads, rows, n,
        (0.0,) if given else tuple(float(x) for x in budgets),
        tuple(float(x) for x in floors or (0,)), BUDGETS=count, SLOTS=slots, BLOCK=block,
        HAS_WEIGHT=weight is not None, HAS_TENSOR=given, HAS_FLOORS=floors is not None,
        IS_INCLUSIVE=inclusive, num_warps=min(16, max(1, block * min(slots, 2) // 512)),
    )  # fmt: skip
    return classes


def head_search(value: Tensor, limit: Tensor | float, is_count: bool) -> Tensor:
    """Launch search_kernel pass by pass; see select.head_budget and select.head_kth.

    value: [B, H, ...] float32; limit: a number, or [B, H]. Returns [B, H] float32.
    """
    batch, heads = value.shape[:2]
    value = value.reshape(batch * heads, -1).contiguous()
    n, bits, tile = value.shape[1], 8 if is_count else 4, 2048 if is_count else 512
    # by length alone: one head's sums must not depend on its company
    chunk = -(-min(max(_CHUNK, n // 64), 8 * _CHUNK) // tile) * tile
    chunks, steps = -(-n // chunk), 32 // bits
    device, given = value.device, isinstance(limit, Tensor)
    limits = limit.expand(batch, heads).contiguous() if given else value
    state = torch.zeros(steps + 1, 2, batch * heads, device=device, dtype=torch.float64)
    parts = torch.empty(
        2, batch * heads, chunks, 1 << bits, device=device,
        dtype=torch.int32 if is_count else torch.float32,
    )  # fmt: skip
    low = torch.empty(batch * heads, chunks, device=device, dtype=torch.float32)
    out = torch.empty(batch, heads, device=device, dtype=torch.float32)
    for step in range(steps + 1):
        last = step == steps
        search_kernel[(batch * heads * (1 if last else chunks),)](
            value, limits, parts, low, state, out, 0 if given else limit, step, batch * heads, n,
            chunks, chunk, BITS=bits, TILE=tile, ROWS=16, IS_FIRST=step == 0, IS_LAST=last,
            IS_COUNT=is_count, HAS_LIMITS=given, num_warps=4,
        )  # fmt: skip
    return out
