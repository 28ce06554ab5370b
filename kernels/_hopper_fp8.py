"""The Gluon kernel of block-sparse attention in fp8 for Hopper (compute capability 9.0).

Programs, rings and producer as in _hopper.py. What differs is in the consumers: a query is the sum
of two fp8 numbers, whose rounding thereby does not count; values are stored with the keys as their
last axis, which is how the tensor cores read 8-bit operands; each step's product of weights and
values is made on its own and added in float32, for the tensor cores keep 14 bits of a sum in fp8.
Launched by hopper_fp8.py, which states formula, shapes and limits.
"""

# Gluon's types are those of the compiler
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from dit_sparse.kernels._hopper_feed import produce
from dit_sparse.kernels._hopper_fold import finish, read_mail

# weights up to 2^8: the largest number is 448, and small ones stay above the smallest longer
_LIFT = gl.constexpr(8.0)


@gluon.jit
def new_ring(
    dtype: gl.constexpr, out_dtype: gl.constexpr, DIM: gl.constexpr, BLOCK_N: gl.constexpr, BOX:
    gl.constexpr, STAGES: gl.constexpr, TERMS: gl.constexpr,
):  # fmt: skip
    """Return the shared memory of one ring and its barriers, initialised, and that of scales.

    mail, q [2 * TERMS, 64, DIM], o [2, 64, DIM], k [STAGES, BLOCK_N, DIM], v [STAGES, DIM,
    BLOCK_N], terms [STAGES, BLOCK_N]; then full and empty barriers of q, k and v. Scales [STAGES,
    32].
    """
    tile: gl.constexpr = gl.NVMMASharedLayout(DIM, 8, 2)
    out: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    across: gl.constexpr = gl.NVMMASharedLayout(BOX, 8, 2)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    bars: gl.constexpr = mbarrier.MBarrierLayout()
    mail = gl.allocate_shared_memory(gl.int32, [8], flat)
    q = gl.allocate_shared_memory(dtype, [2 * TERMS, 64, DIM], tile)
    o = gl.allocate_shared_memory(out_dtype, [2, 64, DIM], out)
    k = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, DIM], tile)
    v = gl.allocate_shared_memory(dtype, [STAGES, DIM, BLOCK_N], across)
    t = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_N], flat)
    scales = gl.allocate_shared_memory(gl.float32, [STAGES, 32], flat)
    q_full = gl.allocate_shared_memory(gl.int64, [1], bars)
    q_empty = gl.allocate_shared_memory(gl.int64, [1], bars)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bars)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bars)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bars)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bars)
    mbarrier.init(q_full, 1)
    mbarrier.init(q_empty, 2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), 1)
        mbarrier.init(v_full.index(i), 1)
        # both consumers arrive
        mbarrier.init(k_empty.index(i), 2)
        mbarrier.init(v_empty.index(i), 2)
    return (mail, q, o, k, v, t, q_full, q_empty, k_full, k_empty, v_full, v_empty), scales


@gluon.jit
def read_scale(scales, place: gl.constexpr):
    """Return one of a step's scales: of its keys, of its values, and 1 over the latter."""
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    at = gl.arange(0, 4, layout)
    return gl.sum(gl.where(at == place, scales.slice(0, 4).load(layout), 0.0), 0)


@gluon.jit
def logits(q_smem, k, HALF: gl.constexpr, TERMS: gl.constexpr, layout: gl.constexpr):
    """Start q k^T [64, BLOCK_N] of both terms of the queries."""
    BLOCK_N: gl.constexpr = k.shape[0]
    s = gl.zeros([64, BLOCK_N], gl.float32, layout)
    across = k.permute((1, 0))
    for term in gl.static_range(TERMS):
        q = q_smem.index(HALF * TERMS + term)
        s = warpgroup_mma(q, across, s, use_acc=term > 0, is_async=True)
    return s


@gluon.jit
def as_fp8(x):
    """Return x in fp8, four numbers of a thread to a register: the compiler takes them apart."""
    return gl.inline_asm_elementwise(
        "{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, $2, $1; "
        "cvt.rn.satfinite.e4m3x2.f32 high, $4, $3; mov.b32 $0, {low, high}; }",
        "=r,f,f,f,f", [x], dtype=gl.float8e4nv, is_pure=True, pack=4,
    )  # fmt: skip


@gluon.jit
def look(
    s, total, peak, unit, scales, t_smem, q_scale, reach, is_noted, HAS_NOTE: gl.constexpr,
    IS_CAUSAL: gl.constexpr,
):  # fmt: skip
    """Return logits s [64, N] of a step, hidden ones -inf, what they are scaled by [64], the total
    and the maximum with them [64], what brings sums in units of `unit` to those of the step, and
    its unit: the scale of its values.

    is_noted: whether the row beside the keys counts, where it may (HAS_NOTE).
    """
    if HAS_NOTE:
        none_hidden = float("-inf") if IS_CAUSAL else 0.0
        columns: gl.constexpr = gl.SliceLayout(0, s.type.layout)
        note = gl.where(is_noted, t_smem.load(columns), none_hidden)
        shown = note[None, :] > float("-inf")
        if IS_CAUSAL:
            shown = note[None, :] <= reach[:, None]
        s = gl.where(shown, s, float("-inf"))
    row_scale = q_scale * read_scale(scales, 0)
    new = gl.maximum(peak, gl.max(s, 1) * row_scale)
    alpha = gl.exp2(peak - new)
    factor = alpha * (unit * read_scale(scales, 2))
    return s, row_scale, total * alpha, new, factor, read_scale(scales, 1)


@gluon.jit
def advance(
    state, memory, scales, n, q_scale, reach, is_noted, HALF: gl.constexpr, DIM: gl.constexpr,
    BLOCK_N: gl.constexpr, STAGES: gl.constexpr, HAS_NOTE: gl.constexpr, IS_CAUSAL: gl.constexpr,
    TERMS: gl.constexpr, HAS_NEXT: gl.constexpr,
):  # fmt: skip
    """Fold step n, whose logits stand in `state`, and put the next one's logits there.

    state: sums acc [64, DIM] in units of the scale of the values before, logits [64, BLOCK_N] and
    the rest as `look` returns it. The tensor cores multiply weights and values while the next
    logits are looked at.
    """
    acc, s, row_scale, total, peak, factor, unit = state
    q_smem, k_smem, v_smem, t_smem = memory[1], memory[3], memory[4], memory[5]
    k_full, k_empty, v_full, v_empty = memory[8], memory[9], memory[10], memory[11]
    s_layout: gl.constexpr = s.type.layout
    o_layout: gl.constexpr = acc.type.layout
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 4)
    stage = n % STAGES
    following = (n + 1) % STAGES
    phase = n // STAGES & 1
    p = gl.exp2(s * row_scale[:, None] + (_LIFT - peak)[:, None])
    total += gl.sum(p, 1)
    # the values of 16 keys are stored in the order in which an operand of 8 bits takes what the
    # threads hold: no number changes its thread
    p = p.reshape([64, BLOCK_N // 16, 2, 4, 2]).permute((0, 1, 3, 2, 4)).reshape([64, BLOCK_N])
    p = as_fp8(gl.convert_layout(p, p_layout, assert_trivial=True))
    if HAS_NEXT:
        mbarrier.wait(k_full.index(following), (n + 1) // STAGES & 1)
        s = logits(q_smem, k_smem.index(following), HALF, TERMS, s_layout)
    mbarrier.wait(v_full.index(stage), phase)
    part = gl.zeros([64, DIM], gl.float32, o_layout)
    values = v_smem.index(stage).permute((1, 0))
    part = warpgroup_mma(p, values, part, use_acc=False, is_async=True)
    now = gl.convert_layout(factor, gl.SliceLayout(1, o_layout), assert_trivial=True)
    if HAS_NEXT:
        s = warpgroup_mma_wait(1, deps=[s])
        s, row_scale, total, peak, factor, unit = look(
            s, total, peak, unit, scales.index(following), t_smem.index(following), q_scale, reach,
            is_noted, HAS_NOTE, IS_CAUSAL,
        )  # fmt: skip
        mbarrier.arrive(k_empty.index(following))
        # a wait that never waits: keeps the compiler from moving the next one before the look
        mbarrier.wait(v_full.index(stage), phase)
    part = warpgroup_mma_wait(0, deps=[part])
    mbarrier.arrive(v_empty.index(stage))
    return acc * now[:, None] + part, s, row_scale, total, peak, factor, unit


@gluon.jit
def consume(
    target, memory, scales, sizes, HALF: gl.constexpr, DIM: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, IS_Q_UNIFORM: gl.constexpr, HAS_NOTE: gl.constexpr, IS_CAUSAL:
    gl.constexpr, TERMS: gl.constexpr,
):  # fmt: skip
    """Attend for 64 rows of every query tile that `mail` announces: four warps."""
    mail, q_smem, k_smem, t_smem = memory[0], memory[1], memory[3], memory[5]
    q_full, k_full, k_empty = memory[6], memory[8], memory[9]
    (
        heads, s_q, s_kv, scale, stride_ob, stride_oh, stride_os, q_scale_ptr, shift_ptr,
    ) = sizes  # fmt: skip
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 32])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 32])
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    turn = 0
    n = 0
    mbarrier.wait(q_full, 0)
    bh = read_mail(mail, 0)
    while bh >= 0:
        start = read_mail(mail, 1) + HALF * 64
        end = read_mail(mail, 2)
        whole = read_mail(mail, 3)
        steps = read_mail(mail, 4)
        rows = start + gl.arange(0, 64, row_layout)
        at = bh.to(gl.int64) * s_q + rows
        q_scale = gl.load(q_scale_ptr + at, mask=rows < end, other=0.0)
        q_scale *= scale * 1.4426950408889634
        shift = gl.zeros([64], gl.float32, row_layout)
        acc = gl.zeros([64, DIM], gl.float32, o_layout)
        total = gl.zeros([64], gl.float32, row_layout)
        # finite, so that exp2(-inf - peak) is 0 and never nan
        peak = gl.full([64], -1.0e38, gl.float32, row_layout)
        # the last key that each query sees, where they do not see all
        reach = (rows + (s_kv - s_q)).to(gl.float32)
        if steps > 0:
            stage = n % STAGES
            mbarrier.wait(k_full.index(stage), n // STAGES & 1)
            s = logits(q_smem, k_smem.index(stage), HALF, TERMS, s_layout)
            s = warpgroup_mma_wait(0, deps=[s])
            s, row_scale, total, peak, factor, unit = look(
                s, total, peak, 1.0, scales.index(stage), t_smem.index(stage), q_scale, reach,
                whole == 0, HAS_NOTE, IS_CAUSAL,
            )  # fmt: skip
            mbarrier.arrive(k_empty.index(stage))
            state = (acc, s, row_scale, total, peak, factor, unit)
            # the next step of all these is whole
            for _ in range(1, whole):
                state = advance(
                    state, memory, scales, n, q_scale, reach, False, HALF, DIM, BLOCK_N, STAGES,
                    False, IS_CAUSAL, TERMS, True,
                )  # fmt: skip
                n += 1
            if HAS_NOTE:
                for _ in range(gl.maximum(whole, 1), steps):
                    state = advance(
                        state, memory, scales, n, q_scale, reach, True, HALF, DIM, BLOCK_N, STAGES,
                        True, IS_CAUSAL, TERMS, True,
                    )  # fmt: skip
                    n += 1
            # no register for it before
            shift = gl.load(shift_ptr + at, mask=rows < end, other=0.0)
            state = advance(
                state, memory, scales, n, q_scale, reach, False, HALF, DIM, BLOCK_N, STAGES, False,
                IS_CAUSAL, TERMS, False,
            )  # fmt: skip
            n += 1
            acc, s, row_scale, total, peak, factor, unit = state
            acc *= unit
        finish(
            acc, total, peak - _LIFT + shift, total, q_smem.index(HALF), target, memory, bh, start,
            end, n, heads, s_q, scale, stride_ob, stride_oh, stride_os, HALF, DIM, STAGES,
            IS_Q_UNIFORM, False,
        )  # fmt: skip
        turn += 1
        mbarrier.wait(q_full, turn & 1)
        bh = read_mail(mail, 0)
    tma.store_wait(0)


@gluon.jit
def hopper_kernel(
    q_desc, k_desc, v_desc, out_desc, scales_desc, out_ptr, lse_ptr, q_scale_ptr, shift_ptr,
    whole_ptr, count_ptr, boxes_ptr, table_ptr, next_ptr, ends_ptr, heads, group, rows, tiles,
    per_head, s_q, s_kv, capacity, scale_group, scale_groups, scale, stride_ob, stride_oh,
    stride_os, DIM: gl.constexpr, Q_SIZE: gl.constexpr, BLOCK_N: gl.constexpr, BOX: gl.constexpr,
    STAGES: gl.constexpr, IS_Q_UNIFORM: gl.constexpr, HAS_SHORT: gl.constexpr, IS_CAUSAL:
    gl.constexpr, TERMS: gl.constexpr,
):  # fmt: skip
    ring, scales = new_ring(q_desc.dtype, out_desc.dtype, DIM, BLOCK_N, BOX, STAGES, TERMS)
    source = (
        q_desc, k_desc, v_desc, whole_ptr, count_ptr, boxes_ptr, table_ptr, next_ptr, ends_ptr,
    )  # fmt: skip
    extras = (scales_desc, scales, scale_group, scale_groups)
    sizes = (heads, group, rows, tiles, per_head, s_q, s_kv, capacity)
    target = (out_desc, out_ptr, lse_ptr)
    shape = (heads, s_q, s_kv, scale, stride_ob, stride_oh, stride_os, q_scale_ptr, shift_ptr)
    gl.warp_specialize(
        [
            (consume, (target, ring, scales, shape, 0, DIM, BLOCK_N, STAGES, IS_Q_UNIFORM,
                HAS_SHORT, IS_CAUSAL, TERMS)),
            (consume, (target, ring, scales, shape, 1, DIM, BLOCK_N, STAGES, IS_Q_UNIFORM,
                HAS_SHORT, IS_CAUSAL, TERMS)),
            (produce, (source, extras, ring, sizes, 0, DIM, Q_SIZE, BLOCK_N, BOX, 0, STAGES, 1,
                IS_Q_UNIFORM, HAS_SHORT, False, False, IS_CAUSAL)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
