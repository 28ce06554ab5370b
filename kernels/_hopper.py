"""The Gluon kernel of block-sparse attention for Hopper (compute capability 9.0).

Persistent programs, each with one or two independent rings of warps: two consumers of 64 query
rows and one producer. The producer takes the next query tile from a counter (longest lists first),
says in `mail` what it is, and streams q, the keys and values of the listed blocks, the extra
columns and the tail into shared memory; the consumers fold them into an online softmax.
Producer: _hopper_feed.py, consumers: _hopper_fold.py; launched by hopper.py, which states formula,
shapes and limits.
"""

# Gluon's types are those of the compiler
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from dit_sparse.kernels._hopper_feed import produce
from dit_sparse.kernels._hopper_fold import consume


@gluon.jit
def new_ring(dtype: gl.constexpr, DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr):
    """Return the shared memory of one ring and its barriers, initialised.

    mail, q [2, 64, DIM], o likewise, k and v [STAGES, BLOCK_N, DIM], terms [STAGES, BLOCK_N]; then
    full and empty barriers of q, k and v.
    """
    tile: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    bars: gl.constexpr = mbarrier.MBarrierLayout()
    mail = gl.allocate_shared_memory(gl.int32, [8], flat)
    q = gl.allocate_shared_memory(dtype, [2, 64, DIM], tile)
    o = gl.allocate_shared_memory(dtype, [2, 64, DIM], tile)
    k = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, DIM], tile)
    v = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, DIM], tile)
    t = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_N], flat)
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
    return mail, q, o, k, v, t, q_full, q_empty, k_full, k_empty, v_full, v_empty


@gluon.jit
def hopper_kernel(
    q_desc, k_desc, v_desc, out_desc, ck_desc, cv_desc, terms_desc, tail_desc, out_ptr, lse_ptr,
    whole_ptr, count_ptr, boxes_ptr, table_ptr, next_ptr, ends_ptr, terms_ptr, cc_ptr, ci_ptr,
    heads, group, column_group, tail_group, rows, tiles, per_head, s_q, s_kv, capacity,
    n_columns, column_capacity, scale, stride_eb, stride_eh, stride_em, stride_ob, stride_oh,
    stride_os, order_ptr, q_ptr, stride_ib, stride_ih, stride_qb, stride_qh, stride_qs, DIM:
    gl.constexpr, Q_SIZE: gl.constexpr, BLOCK_N: gl.constexpr, BOX: gl.constexpr, COLUMN_GROUP:
    gl.constexpr, STAGES: gl.constexpr, RINGS: gl.constexpr, IS_Q_UNIFORM: gl.constexpr,
    HAS_SHORT: gl.constexpr, HAS_COLUMNS: gl.constexpr, HAS_TAIL: gl.constexpr, IS_CAUSAL:
    gl.constexpr, HAS_FENCE: gl.constexpr, HAS_ORDER: gl.constexpr,
):  # fmt: skip
    HAS_NOTE: gl.constexpr = HAS_SHORT or HAS_COLUMNS
    ring = new_ring(q_desc.dtype, DIM, BLOCK_N, STAGES)
    source = (
        q_desc, k_desc, v_desc, whole_ptr, count_ptr, boxes_ptr, table_ptr, next_ptr, ends_ptr,
    )  # fmt: skip
    # an absent tensor map cannot stand in a tuple
    extras = ()
    if HAS_COLUMNS:
        terms = q_desc if COLUMN_GROUP else terms_desc
        extras = (
            ck_desc, cv_desc, terms, tail_desc if HAS_TAIL else q_desc, n_columns, column_group,
            tail_group, terms_ptr, cc_ptr, ci_ptr, column_capacity, stride_eb, stride_eh, stride_em,
        )  # fmt: skip
    sizes = (heads, group, rows, tiles, per_head, s_q, s_kv, capacity)
    target = (out_desc, out_ptr, lse_ptr)
    queries = (order_ptr, q_ptr, stride_ib, stride_ih, stride_qb, stride_qh, stride_qs)
    shape = (heads, s_q, s_kv, scale, stride_ob, stride_oh, stride_os)
    if RINGS == 1:
        gl.warp_specialize(
            [
                (consume, (target, ring, shape, queries, 0, DIM, BLOCK_N, STAGES, IS_Q_UNIFORM,
                    HAS_NOTE, HAS_TAIL, IS_CAUSAL, HAS_FENCE, HAS_ORDER)),
                (consume, (target, ring, shape, queries, 1, DIM, BLOCK_N, STAGES, IS_Q_UNIFORM,
                    HAS_NOTE, HAS_TAIL, IS_CAUSAL, HAS_FENCE, HAS_ORDER)),
                (produce, (source, extras, ring, sizes, 0, DIM, Q_SIZE, BLOCK_N, BOX, COLUMN_GROUP,
                    STAGES, RINGS, IS_Q_UNIFORM, HAS_SHORT, HAS_COLUMNS, HAS_TAIL, IS_CAUSAL,
                    HAS_ORDER)),
            ],
            [4, 1],
            [224, 56],
        )  # fmt: skip
    else:
        other = new_ring(q_desc.dtype, DIM, BLOCK_N, STAGES)
        gl.warp_specialize(
            [
                (consume, (target, ring, shape, queries, 0, DIM, BLOCK_N, STAGES, IS_Q_UNIFORM,
                    HAS_NOTE, HAS_TAIL, IS_CAUSAL, HAS_FENCE, HAS_ORDER)),
                (consume, (target, ring, shape, queries, 1, DIM, BLOCK_N, STAGES, IS_Q_UNIFORM,
                    HAS_NOTE, HAS_TAIL, IS_CAUSAL, HAS_FENCE, HAS_ORDER)),
                (consume, (target, other, shape, queries, 0, DIM, BLOCK_N, STAGES, IS_Q_UNIFORM,
                    HAS_NOTE, HAS_TAIL, IS_CAUSAL, HAS_FENCE, HAS_ORDER)),
                (consume, (target, other, shape, queries, 1, DIM, BLOCK_N, STAGES, IS_Q_UNIFORM,
                    HAS_NOTE, HAS_TAIL, IS_CAUSAL, HAS_FENCE, HAS_ORDER)),
                (produce, (source, extras, ring, sizes, 0, DIM, Q_SIZE, BLOCK_N, BOX, COLUMN_GROUP,
                    STAGES, RINGS, IS_Q_UNIFORM, HAS_SHORT, HAS_COLUMNS, HAS_TAIL, IS_CAUSAL,
                    HAS_ORDER)),
                (produce, (source, extras, other, sizes, 1, DIM, Q_SIZE, BLOCK_N, BOX, COLUMN_GROUP,
                    STAGES, RINGS, IS_Q_UNIFORM, HAS_SHORT, HAS_COLUMNS, HAS_TAIL, IS_CAUSAL,
                    HAS_ORDER)),
            ],
            [4, 4, 4, 1, 1],
            [112, 112, 112, 32, 32],
        )  # fmt: skip
