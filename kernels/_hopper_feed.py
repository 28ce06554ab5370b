"""The producer of the Hopper kernel: a warp that streams query tiles into shared memory.

A step is BLOCK_N keys, fetched in boxes of BOX keys x 64 numbers: narrow blocks share a step, and
a step's boxes stand where one copy of BLOCK_N rows would have put them.
"""

# Gluon's types are those of the compiler
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

# names that changed between Triton 3.6 and 3.9
fetch = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
meet = getattr(gl, "barrier", None) or gl.thread_barrier
_HAS_REINTERPRET = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))

# what `mail` says instead of a head when no tile is left
STOP = gl.constexpr(-1)


@gluon.jit
def uniform(x):
    """Return an int32 that all threads hold alike, in a form that shows this to the assembler."""
    return gl.inline_asm_elementwise(
        "shfl.sync.idx.b32 $0, $1, 0, 31, -1;", "=r,r", [x], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def as_boxes(smem, COUNT: gl.constexpr, BOX: gl.constexpr):
    """View tiles [., rows, d] as their 64-column boxes [COUNT, 1, 1, BOX, 64], memory order."""
    layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 4)
    shape: gl.constexpr = [COUNT, 1, 1, BOX, 64]
    if _HAS_REINTERPRET:
        return smem.reinterpret(smem.dtype, shape, layout)
    else:
        return smem._reinterpret(smem.dtype, shape, layout)


@gluon.jit
def as_rows(smem, COUNT: gl.constexpr, WIDTH: gl.constexpr):
    """View float32 [COUNT, WIDTH] as boxes [COUNT, 1, WIDTH] of a tensor-map copy."""
    layout: gl.constexpr = gl.NVMMASharedLayout(0, 32, 2)
    shape: gl.constexpr = [COUNT, 1, WIDTH]
    if _HAS_REINTERPRET:
        return smem.reinterpret(smem.dtype, shape, layout)
    else:
        return smem._reinterpret(smem.dtype, shape, layout)


@gluon.jit
def fetch_tile(
    desc, full, boxes, stage, b, h, starts, BLOCK: gl.constexpr, BOX: gl.constexpr, DIM:
    gl.constexpr,
):  # fmt: skip
    """Fetch BLOCK rows of [B, H, S, DIM] into a stage: a box of BOX rows from each of `starts`."""
    PARTS: gl.constexpr = BLOCK // BOX
    CHUNKS: gl.constexpr = DIM // 64
    for c in gl.static_range(CHUNKS):
        for p in gl.static_range(PARTS):
            box = boxes.index((stage * CHUNKS + c) * PARTS + p)
            fetch(desc, [b, h, starts[p], c * 64], full.index(stage), box)


@gluon.jit
def claim(full, empty, n, BYTES: gl.constexpr, STAGES: gl.constexpr):
    """Wait until the stage of the n-th tile is free, announce its bytes, and return the stage."""
    stage = n % STAGES
    mbarrier.wait(empty.index(stage), (n // STAGES & 1) ^ 1)
    mbarrier.expect(full.index(stage), BYTES)
    return stage


@gluon.jit
def listed_ids(
    list_ptr, count, at, step, SIZE: gl.constexpr, BLOCK_N: gl.constexpr, BOX: gl.constexpr
):
    """Return the block of each box of a step, whole blocks in list order (anything past them).

    The short last block of the axis, listed at `at` (at `count`: not listed), is left out.
    """
    PARTS: gl.constexpr = BLOCK_N // BOX
    # a tuple of this length: the language has no other list
    ids = ()
    for p in gl.static_range(PARTS):
        entry = (step * PARTS + p) // (SIZE // BOX)
        place = gl.minimum(entry + (entry >= at).to(gl.int32), count - 1)
        ids = ids + (gl.load(list_ptr + place, mask=count > 0, other=0),)  # noqa: RUF005
    return ids


@gluon.jit
def box_starts(
    ids, count, at, step, s_kv, blocks, SIZE: gl.constexpr, BLOCK_N: gl.constexpr, BOX:
    gl.constexpr,
):  # fmt: skip
    """Return the first key of each box of a step; past the end of the list, s_kv (zeros).

    Whole blocks first, the short last block of the axis last.
    """
    PARTS: gl.constexpr = BLOCK_N // BOX
    PER: gl.constexpr = SIZE // BOX
    has_last = (at < count).to(gl.int32)
    starts = ()
    for p in gl.static_range(PARTS):
        box = step * PARTS + p
        entry = box // PER
        whole = entry < count - has_last
        id = gl.where(whole, uniform(ids[p]), blocks - 1)
        start = gl.where(whole | (entry < count), id * SIZE + (box % PER) * BOX, s_kv)
        starts = starts + (start,)  # noqa: RUF005
    return starts


@gluon.jit
def find_last(list_ptr, count, blocks):
    """Return where a list holds the last block of the axis, `count` where it does not."""
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [1], [0])
    at = count
    for base in range(0, count, 128):
        place = base + gl.arange(0, 128, layout)
        ids = gl.load(list_ptr + place, mask=place < count, other=-1)
        at = gl.minimum(at, gl.min(gl.where(ids == blocks - 1, place, count), 0))
    return at


@gluon.jit
def produce(
    source, extras, memory, sizes, ring, DIM: gl.constexpr, Q_SIZE: gl.constexpr, SIZE:
    gl.constexpr, BLOCK_N: gl.constexpr, BOX: gl.constexpr, STAGES: gl.constexpr, RINGS:
    gl.constexpr, IS_Q_UNIFORM: gl.constexpr, IS_RAGGED: gl.constexpr, HAS_COLUMNS: gl.constexpr,
    HAS_TAIL: gl.constexpr,
):  # fmt: skip
    """Take one query tile after another from the counter and stream what its consumers need.

    mail: [4] int32 = (batch * heads + head or STOP, first query, past-the-end query, kept keys).
    """
    q_desc, k_desc, v_desc, count_ptr, index_ptr, table_ptr, next_ptr, q_ends_ptr = source
    (
        mail, q_smem, _o_smem, k_smem, v_smem, t_smem, q_full, q_empty, k_full, k_empty, v_full,
        v_empty,
    ) = memory  # fmt: skip
    (
        heads, group, column_group, tail_group, rows, tiles, per_head, s_q, s_kv, blocks, capacity,
        n_columns, stride_eb, stride_eh, stride_em,
    ) = sizes  # fmt: skip
    BYTES: gl.constexpr = BLOCK_N * DIM * 2
    CHUNKS: gl.constexpr = DIM // 64
    slot = gl.arange(0, 4, gl.BlockedLayout([1], [32], [1], [0]))
    q_boxes = as_boxes(q_smem, 2 * CHUNKS, 64)
    k_boxes = as_boxes(k_smem, STAGES * CHUNKS * (BLOCK_N // BOX), BOX)
    v_boxes = as_boxes(v_smem, STAGES * CHUNKS * (BLOCK_N // BOX), BOX)
    turn = 0
    ks = 0
    vs = 0
    tile = gl.program_id(0) * RINGS + ring
    while tile < tiles:
        following = gl.num_programs(0) * RINGS + gl.atomic_add(next_ptr, 1)
        row = uniform(gl.load(table_ptr + tile * 2))
        start = uniform(gl.load(table_ptr + tile * 2 + 1))
        bh = tile // per_head
        b = bh // heads
        h = bh % heads
        if IS_Q_UNIFORM:
            end = gl.minimum(row * Q_SIZE + Q_SIZE, s_q)
        else:
            end = uniform(gl.load(q_ends_ptr + bh * (rows + 1) + row))
        if start < end:
            place = (bh * rows + row).to(gl.int64)
            list_ptr = index_ptr + place * capacity
            count = uniform(gl.minimum(gl.load(count_ptr + place), capacity))
            at = count
            keys = count * SIZE
            if IS_RAGGED:
                at = uniform(find_last(list_ptr, count, blocks))
                keys = gl.where(at < count, keys - (blocks * SIZE - s_kv), keys)
            mbarrier.wait(q_empty, (turn & 1) ^ 1)
            letter = gl.where(slot == 0, bh, gl.where(slot == 1, start, keys))
            mail.store(gl.where(slot == 2, end, letter))
            meet()
            mbarrier.expect(q_full, 2 * 64 * DIM * 2)
            for half in gl.static_range(2):
                for c in gl.static_range(CHUNKS):
                    at_q = [b, h, start + half * 64, c * 64]
                    fetch(q_desc, at_q, q_full, q_boxes.index(half * CHUNKS + c))
            turn += 1
            hk = h // group
            ids = listed_ids(list_ptr, count, at, 0, SIZE, BLOCK_N, BOX)
            for step in range(0, (keys + BLOCK_N - 1) // BLOCK_N):
                starts = box_starts(ids, count, at, step, s_kv, blocks, SIZE, BLOCK_N, BOX)
                # on their way while this step waits for room
                ids = listed_ids(list_ptr, count, at, step + 1, SIZE, BLOCK_N, BOX)
                stage = claim(k_full, k_empty, ks, BYTES, STAGES)
                fetch_tile(k_desc, k_full, k_boxes, stage, b, hk, starts, BLOCK_N, BOX, DIM)
                ks += 1
                stage = claim(v_full, v_empty, vs, BYTES, STAGES)
                fetch_tile(v_desc, v_full, v_boxes, stage, b, hk, starts, BLOCK_N, BOX, DIM)
                vs += 1
            if HAS_COLUMNS:
                ck_desc, cv_desc, terms_desc, tail_desc = extras
                ck_boxes = as_boxes(k_smem, STAGES * CHUNKS, BLOCK_N)
                cv_boxes = as_boxes(v_smem, STAGES * CHUNKS, BLOCK_N)
                terms = as_rows(t_smem, STAGES, BLOCK_N)
                hc = h // column_group
                line = b * stride_eb + h * stride_eh + row * stride_em
                for first in range(0, n_columns, BLOCK_N):
                    stage = claim(k_full, k_empty, ks, BYTES + BLOCK_N * 4, STAGES)
                    fetch(terms_desc, [line, first], k_full.index(stage), terms.index(stage))
                    fetch_tile(
                        ck_desc, k_full, ck_boxes, stage, b, hc, (first,), BLOCK_N, BLOCK_N, DIM
                    )
                    ks += 1
                    stage = claim(v_full, v_empty, vs, BYTES, STAGES)
                    fetch_tile(
                        cv_desc, v_full, cv_boxes, stage, b, hc, (first,), BLOCK_N, BLOCK_N, DIM
                    )
                    vs += 1
                if HAS_TAIL:
                    # one more tile of values: [DIM, DIM], and BLOCK_N is DIM
                    stage = claim(v_full, v_empty, vs, BYTES, STAGES)
                    fetch_tile(
                        tail_desc, v_full, cv_boxes, stage, b, h // tail_group, (0,), BLOCK_N,
                        BLOCK_N, DIM,
                    )  # fmt: skip
                    vs += 1
        tile = uniform(following)
    mbarrier.wait(q_empty, (turn & 1) ^ 1)
    mail.store(slot * 0 + STOP)
    meet()
    mbarrier.arrive(q_full)
