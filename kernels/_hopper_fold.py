"""The consumers of the Hopper kernel: four warps that fold steps of keys into 64 queries' softmax.

Weights are products of step j while the tensor cores make the logits of step j + 1.
"""

# Gluon's types are those of the compiler
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from dit_sparse.kernels._hopper_feed import as_boxes, meet, uniform
from dit_sparse.kernels._hopper_order import own_order, row_places, take_queries

# its name changed between Triton 3.6 and 3.9
deliver = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

# a running maximum stays until it is this much too small (log2 units): weights up to 2^8 are as
# exact in float32 sums as weights up to 1
_SLACK = gl.constexpr(8.0)


@gluon.constexpr_function
def _rescale_asm(n):
    """Return PTX that multiplies n accumulators by their factors unless all in the warp are 1.

    A thread holds two rows of a tile, those of its accumulators 0 and 2.
    """
    products = " ".join(f"mul.f32 ${i}, ${i}, ${2 * n + i};" for i in range(n))
    return (
        "{ .reg .pred p, r; "
        f"setp.neu.f32 p, ${2 * n}, 0f3F800000; setp.neu.f32 r, ${2 * n + 2}, 0f3F800000; "
        "or.pred p, p, r; vote.sync.any.pred p, p, -1; @!p bra SKIP; "
        f"{products} SKIP: }}"
    )


@gluon.constexpr_function
def _rescale_constraints(n):
    # each output in the register of its accumulator
    return ",".join(["=f"] * n + [str(i) for i in range(n)] + ["f"] * n)


@gluon.jit
def read_mail(mail, slot: gl.constexpr):
    """Return one number of `mail` to all threads of a consumer."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    at = gl.arange(0, 8, layout)
    return uniform(gl.sum(gl.where(at == slot, mail.load(layout), 0), 0))


@gluon.jit
def weigh(s, peak, total, qk_scale, note, reach, HAS_NOTE: gl.constexpr, IS_CAUSAL: gl.constexpr):
    """Return the weights p of logits s [M, N], factors alpha [M] of what stands, and row sums.

    note: [N] the row beside the keys, an addend or (IS_CAUSAL) positions, seen up to `reach` [M].
    """
    if HAS_NOTE:
        s = s * qk_scale
        if IS_CAUSAL:
            s = gl.where(note[None, :] <= reach[:, None], s, float("-inf"))
        else:
            # chosen, not added: a hidden key may be anything, and nan + -inf is nan
            s = gl.where(note[None, :] > float("-inf"), s + note[None, :], float("-inf"))
        top = gl.max(s, 1)
    else:
        top = gl.max(s, 1) * qk_scale
    new = gl.where(top > peak + _SLACK, top, peak)
    s = s if HAS_NOTE else s * qk_scale
    p = gl.exp2(s - new[:, None])
    alpha = gl.exp2(peak - new)
    row_sum = gl.sum(p, 1)
    return p, alpha, new, total * alpha + row_sum, row_sum


@gluon.jit
def rescale(acc, alpha, PACK: gl.constexpr):
    """Return acc [M, D] times alpha [M], at no cost where no row of the warp needs it."""
    alpha = gl.convert_layout(alpha, gl.SliceLayout(1, acc.type.layout), assert_trivial=True)
    factor, _ = gl.broadcast(alpha[:, None], acc)
    return gl.inline_asm_elementwise(
        _rescale_asm(PACK), _rescale_constraints(PACK), [acc, factor], dtype=gl.float32,
        is_pure=True, pack=PACK,
    )  # fmt: skip


@gluon.jit
def advance(
    acc, p, total, peak, mass, q, k_smem, v_smem, t_smem, k_full, k_empty, v_full, v_empty, ks, vs,
    qk_scale, reach, is_column, DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    HAS_NOTE: gl.constexpr, HAS_TAIL: gl.constexpr, IS_CAUSAL: gl.constexpr, HAS_FENCE:
    gl.constexpr,
):  # fmt: skip
    """Multiply the weights of the step before by its values while this step's logits are made, and
    return this step's weights.

    ks, vs: steps of keys and of values so far. HAS_NOTE: the row beside the keys counts.
    """
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    k_stage = ks % STAGES
    v_stage = vs % STAGES
    v_phase = vs // STAGES & 1
    mbarrier.wait(k_full.index(k_stage), ks // STAGES & 1)
    none = gl.zeros([64, BLOCK_N], gl.float32, s_layout)
    s = warpgroup_mma(q, k_smem.index(k_stage).permute((1, 0)), none, use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(v_stage), v_phase)
    acc = warpgroup_mma(p, v_smem.index(v_stage), acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=[s])
    note = gl.zeros([BLOCK_N], gl.float32, gl.SliceLayout(0, s_layout))
    if HAS_NOTE:
        note = t_smem.index(k_stage).load(note.type.layout)
    mbarrier.arrive(k_empty.index(k_stage))
    w, alpha, peak, total, row_sum = weigh(
        s, peak, total, qk_scale, note, reach, HAS_NOTE, IS_CAUSAL
    )
    if HAS_TAIL and HAS_NOTE:
        mass = mass * alpha + gl.where(is_column, row_sum, 0.0)
    if HAS_FENCE:
        # a wait that never waits: keeps the compiler from moving the next one before the weights
        mbarrier.wait(v_full.index(v_stage), v_phase)
    acc, p = warpgroup_mma_wait(0, deps=[acc, p])
    mbarrier.arrive(v_empty.index(v_stage))
    acc = rescale(acc, alpha, DIM // 2)
    p = gl.convert_layout(w.to(q.dtype), gl.DotOperandLayout(0, o_layout, 2))
    return acc, p, total, peak, mass


@gluon.jit
def finish(
    acc, total, peak, mass, q, target, memory, bh, start, end, vs, heads, s_q, scale, stride_ob,
    stride_oh, stride_os, HALF: gl.constexpr, DIM: gl.constexpr, STAGES: gl.constexpr,
    IS_Q_UNIFORM: gl.constexpr, HAS_TAIL: gl.constexpr, order=None, HAS_ORDER: gl.constexpr = False,
):  # fmt: skip
    """Divide by the sums, add the tail, free the query tile and write out and lse.

    order: with HAS_ORDER, the pointer to the places of the head's queries.
    """
    out_desc, out_ptr, lse_ptr = target
    o_smem, v_smem, q_empty, v_full, v_empty = (
        memory[2], memory[4], memory[7], memory[10], memory[11]
    )  # fmt: skip
    o_layout: gl.constexpr = acc.type.layout
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    inverse = 1.0 / gl.where(total > 0, total, 1.0)
    acc = acc * gl.convert_layout(inverse, o_rows, assert_trivial=True)[:, None]
    if HAS_TAIL:
        # (mass / total) * scale * q T: one product into the accumulator, at a weight above 0
        weight = gl.maximum(mass * inverse * scale, 1.0e-20)
        some = gl.where(total > 0, weight, 0.0)
        stage = vs % STAGES
        mbarrier.wait(v_full.index(stage), vs // STAGES & 1)
        acc = acc * gl.convert_layout(1.0 / weight, o_rows, assert_trivial=True)[:, None]
        acc = warpgroup_mma(q, v_smem.index(stage), acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(v_empty.index(stage))
        acc = acc * gl.convert_layout(some, o_rows, assert_trivial=True)[:, None]
    mbarrier.arrive(q_empty)
    lse = (peak + gl.log2(gl.where(total > 0, total, 1.0))) * 0.6931471805599453
    lse = gl.where(total > 0, lse, float("-inf"))
    own_rows: gl.constexpr = total.type.layout
    rows, live = row_places(order, start, end, own_rows, HAS_ORDER)
    gl.store(lse_ptr + bh.to(gl.int64) * s_q + rows, lse, mask=live)
    b = bh // heads
    h = bh % heads
    # the copy of the tile before has been read
    tma.store_wait(0)
    meet()
    o = o_smem.index(HALF)
    o.store(acc.to(o.dtype))
    if IS_Q_UNIFORM and not HAS_ORDER:
        fence_async_shared()
        meet()
        boxes = as_boxes(o_smem, 2 * DIM // 64, 64)
        for c in gl.static_range(DIM // 64):
            deliver(out_desc, [b, h, start, c * 64], boxes.index(HALF * (DIM // 64) + c))
    else:
        # rows past the block are another block's
        meet()
        flat: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
        r, live = row_places(order, start, end, gl.SliceLayout(1, flat), HAS_ORDER)
        d = gl.arange(0, DIM, gl.SliceLayout(0, flat))
        base = out_ptr + b.to(gl.int64) * stride_ob + h.to(gl.int64) * stride_oh
        at = base + (r.to(gl.int64) * stride_os)[:, None] + d[None, :]
        gl.store(at, o.load(flat), mask=live[:, None])


@gluon.jit
def consume(
    target, memory, sizes, queries, HALF: gl.constexpr, DIM: gl.constexpr, BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr, IS_Q_UNIFORM: gl.constexpr, HAS_NOTE: gl.constexpr, HAS_TAIL:
    gl.constexpr, IS_CAUSAL: gl.constexpr, HAS_FENCE: gl.constexpr, HAS_ORDER: gl.constexpr,
):  # fmt: skip
    """Attend for 64 rows of every query tile that `mail` announces: four warps."""
    (
        mail, q_smem, _o_smem, k_smem, v_smem, t_smem, q_full, _q_empty, k_full, k_empty, v_full,
        v_empty,
    ) = memory  # fmt: skip
    heads, s_q, s_kv, scale, stride_ob, stride_oh, stride_os = sizes
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, s_layout)
    qk_scale = scale * 1.4426950408889634
    q = q_smem.index(HALF)
    turn = 0
    ks = 0
    vs = 0
    mbarrier.wait(q_full, 0)
    bh = read_mail(mail, 0)
    while bh >= 0:
        start = read_mail(mail, 1) + HALF * 64
        end = read_mail(mail, 2)
        whole = read_mail(mail, 3)
        kept = read_mail(mail, 4)
        steps = kept + read_mail(mail, 5)
        order = queries[0]
        if HAS_ORDER:
            order, q_ptr = own_order(queries, bh, heads)
            take_queries(q, order, q_ptr, queries[6], start, end, DIM)
        acc = gl.zeros([64, DIM], gl.float32, o_layout)
        total = gl.zeros([64], gl.float32, row_layout)
        mass = gl.zeros([64], gl.float32, row_layout)
        # finite, so that exp2(-inf - peak) is 0 and never nan
        peak = gl.full([64], -1.0e38, gl.float32, row_layout)
        # the last key that each query sees, where they do not see all
        reach = (gl.arange(0, 64, row_layout) + start + (s_kv - s_q)).to(gl.float32)
        if steps > 0:
            # the first logits alone
            stage = ks % STAGES
            mbarrier.wait(k_full.index(stage), ks // STAGES & 1)
            none = gl.zeros([64, BLOCK_N], gl.float32, s_layout)
            s = warpgroup_mma(
                q, k_smem.index(stage).permute((1, 0)), none, use_acc=False, is_async=True
            )
            s = warpgroup_mma_wait(0, deps=[s])
            # a step of whole boxes has no row of its own
            none_hidden = float("-inf") if IS_CAUSAL else 0.0
            note = gl.full([BLOCK_N], none_hidden, gl.float32, gl.SliceLayout(0, s_layout))
            if HAS_NOTE:
                note = gl.where(whole == 0, t_smem.index(stage).load(note.type.layout), note)
            mbarrier.arrive(k_empty.index(stage))
            w, _alpha, peak, total, row_sum = weigh(
                s, peak, total, qk_scale, note, reach, HAS_NOTE, IS_CAUSAL
            )
            if HAS_TAIL:
                mass = gl.where(kept == 0, row_sum, 0.0)
            p = gl.convert_layout(w.to(q.dtype), p_layout)
            ks += 1
            for _ in range(1, whole):
                acc, p, total, peak, mass = advance(
                    acc, p, total, peak, mass, q, k_smem, v_smem, t_smem, k_full, k_empty, v_full,
                    v_empty, ks, vs, qk_scale, reach, False, DIM, BLOCK_N, STAGES, False, HAS_TAIL,
                    IS_CAUSAL, HAS_FENCE,
                )  # fmt: skip
                ks += 1
                vs += 1
            if HAS_NOTE:
                for step in range(gl.maximum(whole, 1), steps):
                    acc, p, total, peak, mass = advance(
                        acc, p, total, peak, mass, q, k_smem, v_smem, t_smem, k_full, k_empty,
                        v_full, v_empty, ks, vs, qk_scale, reach, step >= kept, DIM, BLOCK_N,
                        STAGES, True, HAS_TAIL, IS_CAUSAL, HAS_FENCE,
                    )  # fmt: skip
                    ks += 1
                    vs += 1
            stage = vs % STAGES
            mbarrier.wait(v_full.index(stage), vs // STAGES & 1)
            acc = warpgroup_mma(p, v_smem.index(stage), acc, is_async=True)
            acc, p = warpgroup_mma_wait(0, deps=[acc, p])
            mbarrier.arrive(v_empty.index(stage))
            vs += 1
        finish(
            acc, total, peak, mass, q, target, memory, bh, start, end, vs, heads, s_q, scale,
            stride_ob, stride_oh, stride_os, HALF, DIM, STAGES, IS_Q_UNIFORM, HAS_TAIL, order,
            HAS_ORDER,
        )  # fmt: skip
        if HAS_TAIL:
            vs += 1
        turn += 1
        mbarrier.wait(q_full, turn & 1)
        bh = read_mail(mail, 0)
    tma.store_wait(0)
