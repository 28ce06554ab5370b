"""The producer of the Hopper kernel: a warp that streams query tiles into shared memory.

A step is BLOCK_N keys, fetched in boxes of BOX keys x 64 numbers: narrow blocks share a step, and
a step's boxes stand where one copy of BLOCK_N rows would have put them. In a row beside its keys
stands what a step adds to its logits (-inf where a box is short, the terms of columns), or where
its keys stand in the sequence, for a causal mask. In fp8 a box holds whole keys, values come with
the keys as their last axis, and each step has its scales.
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
def as_boxes(smem, COUNT: gl.constexpr, BOX: gl.constexpr, WIDTH: gl.constexpr = 64):
    """View tiles [., rows, d] as their boxes [COUNT, 1, 1, BOX, WIDTH] of at most 128 bytes a row,
    memory order."""
    bits: gl.constexpr = smem.dtype.primitive_bitwidth
    layout: gl.constexpr = gl.NVMMASharedLayout(WIDTH * bits // 8, bits, 4)
    shape: gl.constexpr = [COUNT, 1, 1, BOX, WIDTH]
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
    gl.constexpr, IS_ACROSS: gl.constexpr = False,
):  # fmt: skip
    """Fetch BLOCK rows of [B, H, S, DIM] (IS_ACROSS: [B, H, DIM, S]) into a stage: from each of
    `starts` a box of BOX whole rows, or of 64 numbers of each."""
    PARTS: gl.constexpr = BLOCK // BOX
    CHUNKS: gl.constexpr = 1 if IS_ACROSS else DIM // boxes.shape[4]
    for c in gl.static_range(CHUNKS):
        for p in gl.static_range(PARTS):
            box = boxes.index((stage * CHUNKS + c) * PARTS + p)
            if IS_ACROSS:
                fetch(desc, [b, h, 0, starts[p]], full.index(stage), box)
            else:
                fetch(desc, [b, h, starts[p], c * 64], full.index(stage), box)


@gluon.jit
def vacant(empty, n, STAGES: gl.constexpr):
    """Wait until the stage of the n-th tile is free, and return it."""
    stage = n % STAGES
    mbarrier.wait(empty.index(stage), (n // STAGES & 1) ^ 1)
    return stage


@gluon.jit
def fetch_values(
    desc, full, empty, boxes, n, b, h, starts, BLOCK: gl.constexpr, BOX: gl.constexpr, DIM:
    gl.constexpr, STAGES: gl.constexpr, IS_ACROSS: gl.constexpr = False,
):  # fmt: skip
    """Fetch the n-th tile of values into its stage once that is free."""
    stage = vacant(empty, n, STAGES)
    mbarrier.expect(full.index(stage), BLOCK * DIM * (1 if IS_ACROSS else 2))
    fetch_tile(desc, full, boxes, stage, b, h, starts, BLOCK, BOX, DIM, IS_ACROSS)


@gluon.jit
def read_entries(list_ptr, step, count, past, PARTS: gl.constexpr):
    """Return the list entries of a step's boxes; `past` behind the end of the list."""
    # a tuple of this length: the language has no other list
    entries = ()
    for p in gl.static_range(PARTS):
        at = step * PARTS + p
        entries = entries + (gl.load(list_ptr + at, mask=at < count, other=past),)  # noqa: RUF005
    return entries


@gluon.jit
def first_rows(entries, FACTOR: gl.constexpr, SHIFT: gl.constexpr):
    """Return where each box starts: entry * FACTOR >> SHIFT."""
    starts = ()
    for entry in gl.static_range(len(entries)):
        starts = starts + ((uniform(entries[entry]) * FACTOR) >> SHIFT,)  # noqa: RUF005
    return starts


@gluon.jit
def column_steps(extras, place, GROUP: gl.constexpr, BLOCK_N: gl.constexpr):
    """Return how many groups of columns a row lists, and how many steps its columns take."""
    n_columns, count_ptr = extras[4], extras[8]
    shown = n_columns
    steps = (n_columns + BLOCK_N - 1) // BLOCK_N
    if GROUP:
        shown = uniform(gl.minimum(gl.load(count_ptr + place), extras[10]))
        steps = (shown * GROUP + BLOCK_N - 1) // BLOCK_N
    return shown, steps


@gluon.jit
def feed_columns(
    extras, memory, ks, vs, b, h, row, place, shown, steps, key, DIM: gl.constexpr, BLOCK_N:
    gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, HAS_TAIL: gl.constexpr,
):  # fmt: skip
    """Stream the columns of a row, all of them or `shown` listed groups, and the tail."""
    (
        ck_desc, cv_desc, terms_desc, tail_desc, n_columns, group, tail_group, terms_ptr,
        _count_ptr, index_ptr, capacity, stride_b, stride_h, stride_m,
    ) = extras  # fmt: skip
    k_smem, v_smem, t_smem = memory[3], memory[4], memory[5]
    k_full, k_empty, v_full, v_empty = memory[8], memory[9], memory[10], memory[11]
    BOX: gl.constexpr = GROUP if GROUP else BLOCK_N
    CHUNKS: gl.constexpr = DIM // 64
    PARTS: gl.constexpr = BLOCK_N // BOX
    k_boxes = as_boxes(k_smem, STAGES * CHUNKS * PARTS, BOX)
    v_boxes = as_boxes(v_smem, STAGES * CHUNKS * PARTS, BOX)
    terms = as_rows(t_smem, STAGES, BLOCK_N)
    hc = h // group
    # in rows of the terms, each of a whole number of steps
    line = b * stride_b + h * stride_h + row * stride_m
    if GROUP:
        list_ptr = index_ptr + place * capacity
        terms_ptr += line.to(gl.int64) * ((n_columns + BLOCK_N - 1) // BLOCK_N * BLOCK_N)
    for step in range(0, steps):
        stage = vacant(k_empty, ks + step, STAGES)
        starts = (step * BLOCK_N,)
        if GROUP:
            past = (n_columns + GROUP - 1) // GROUP
            starts = first_rows(read_entries(list_ptr, step, shown, past, PARTS), GROUP, 0)
            at = step * PARTS + key // GROUP
            listed = gl.load(list_ptr + at, mask=at < shown, other=past)
            column = listed * GROUP + key % GROUP
            live = column < n_columns
            term = gl.load(terms_ptr + column, mask=live, other=float("-inf"))
            t_smem.index(stage).store(term)
            meet()
            mbarrier.expect(k_full.index(stage), BLOCK_N * DIM * 2)
        else:
            mbarrier.expect(k_full.index(stage), BLOCK_N * DIM * 2 + BLOCK_N * 4)
            fetch(terms_desc, [line, step * BLOCK_N], k_full.index(stage), terms.index(stage))
        fetch_tile(ck_desc, k_full, k_boxes, stage, b, hc, starts, BLOCK_N, BOX, DIM)
        fetch_values(
            cv_desc, v_full, v_empty, v_boxes, vs + step, b, hc, starts, BLOCK_N, BOX, DIM, STAGES
        )
    if HAS_TAIL:
        # one more tile of values: [DIM, DIM], and BLOCK_N is DIM
        whole = as_boxes(v_smem, STAGES * CHUNKS, BLOCK_N)
        fetch_values(
            tail_desc, v_full, v_empty, whole, vs + steps, b, h // tail_group, (0,), BLOCK_N,
            BLOCK_N, DIM, STAGES,
        )  # fmt: skip


@gluon.jit
def produce(
    source, extras, memory, sizes, ring, DIM: gl.constexpr, Q_SIZE: gl.constexpr, BLOCK_N:
    gl.constexpr, BOX: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr, RINGS:
    gl.constexpr, IS_Q_UNIFORM: gl.constexpr, HAS_SHORT: gl.constexpr, HAS_COLUMNS: gl.constexpr,
    HAS_TAIL: gl.constexpr, IS_CAUSAL: gl.constexpr, HAS_ORDER: gl.constexpr = False,
):  # fmt: skip
    """Take one query tile after another from the counter and stream what its consumers need.

    mail: [8] int32 = (batch * heads + head or STOP, first query, past-the-end query, steps without
    and with an addend of kept keys, steps of columns). extras: what columns need, or fp8.
    """
    q_desc, k_desc, v_desc, whole_ptr, count_ptr, boxes_ptr, table_ptr, next_ptr, ends_ptr = source
    (
        mail, q_smem, _o_smem, k_smem, v_smem, t_smem, q_full, q_empty, k_full, k_empty, v_full,
        v_empty,
    ) = memory  # fmt: skip
    heads, group, rows, tiles, per_head, s_q, s_kv, capacity = sizes
    IS_FP8: gl.constexpr = q_desc.dtype.primitive_bitwidth == 8
    NUMBER: gl.constexpr = q_desc.dtype.primitive_bitwidth // 8
    BYTES: gl.constexpr = BLOCK_N * DIM * NUMBER
    WIDTH: gl.constexpr = DIM if IS_FP8 else 64
    CHUNKS: gl.constexpr = DIM // WIDTH
    PARTS: gl.constexpr = BLOCK_N // BOX
    # in fp8 a query is a sum of several terms; in an order the consumers fetch theirs
    Q_CHUNKS: gl.constexpr = q_smem.shape[0] // 2 * CHUNKS
    HALVES: gl.constexpr = 0 if HAS_ORDER else 2
    slot = gl.arange(0, 8, gl.BlockedLayout([1], [32], [1], [0]))
    key = gl.arange(0, BLOCK_N, gl.BlockedLayout([BLOCK_N // 32], [32], [1], [0]))
    q_boxes = as_boxes(q_smem, 2 * Q_CHUNKS, 64, WIDTH)
    k_boxes = as_boxes(k_smem, STAGES * CHUNKS * PARTS, BOX, WIDTH)
    if IS_FP8:
        v_boxes = as_boxes(v_smem, STAGES * PARTS, DIM, BOX)
        scales_desc, scales, scale_group, scale_groups = extras
        scales = as_rows(scales, STAGES, 32)
    else:
        v_boxes = as_boxes(v_smem, STAGES * CHUNKS * PARTS, BOX)
    # a box without keys; an address in a row of values is a multiple of 16 bytes
    past = (s_kv + 15) // 16 * 4096 if IS_FP8 else s_kv * 256
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
            end = uniform(gl.load(ends_ptr + bh * (rows + 1) + row))
        if start < end:
            place = (bh * rows + row).to(gl.int64)
            list_ptr = boxes_ptr + place * capacity
            count = uniform(gl.load(count_ptr + place))
            whole = uniform(gl.load(whole_ptr + place)) // PARTS
            kept = (count + PARTS - 1) // PARTS
            shown = 0
            columns = 0
            if HAS_COLUMNS:
                shown, columns = column_steps(extras, place, GROUP, BLOCK_N)
            mbarrier.wait(q_empty, (turn & 1) ^ 1)
            letter = gl.where(slot == 0, bh, gl.where(slot == 1, start, end))
            letter = gl.where(slot == 3, whole, gl.where(slot == 4, kept, letter))
            mail.store(gl.where(slot == 5, columns, letter))
            meet()
            mbarrier.expect(q_full, HALVES * 64 * Q_CHUNKS * WIDTH * NUMBER)
            for half in gl.static_range(HALVES):
                for c in gl.static_range(Q_CHUNKS):
                    corner = [b, h, start + half * 64, c * WIDTH]
                    fetch(q_desc, corner, q_full, q_boxes.index(half * Q_CHUNKS + c))
            turn += 1
            hk = h // group
            entries = read_entries(list_ptr, 0, count, past, PARTS)
            for step in range(0, kept):
                starts = first_rows(entries, 1, 8)
                # on their way while this step waits for room
                entries = read_entries(list_ptr, step + 1, count, past, PARTS)
                stage = vacant(k_empty, ks, STAGES)
                if HAS_SHORT:  # noqa: SIM102 - a constant decides what is compiled
                    if step >= whole:
                        box = step * PARTS + key // BOX
                        box = gl.load(list_ptr + box, mask=box < count, other=0)
                        live = key % BOX < (box & 255)
                        if IS_CAUSAL:
                            place_of = (box >> 8) + key % BOX
                            note = gl.where(live, place_of.to(gl.float32), float("inf"))
                        else:
                            note = gl.where(live, 0.0, float("-inf"))
                        t_smem.index(stage).store(note)
                        meet()
                mbarrier.expect(k_full.index(stage), BYTES + (128 if IS_FP8 else 0))
                if IS_FP8:
                    # the boxes of a step have their scales in common
                    line = (b * (heads // group) + hk) * scale_groups + starts[0] // scale_group
                    fetch(scales_desc, [line, 0], k_full.index(stage), scales.index(stage))
                fetch_tile(k_desc, k_full, k_boxes, stage, b, hk, starts, BLOCK_N, BOX, DIM)
                fetch_values(
                    v_desc, v_full, v_empty, v_boxes, vs, b, hk, starts, BLOCK_N, BOX, DIM, STAGES,
                    IS_FP8,
                )  # fmt: skip
                ks += 1
                vs += 1
            if HAS_COLUMNS:
                feed_columns(
                    extras, memory, ks, vs, b, h, row, place, shown, columns, key, DIM, BLOCK_N,
                    GROUP, STAGES, HAS_TAIL,
                )  # fmt: skip
                ks += columns
                vs += columns
                if HAS_TAIL:
                    vs += 1
        tile = uniform(following)
    mbarrier.wait(q_empty, (turn & 1) ^ 1)
    mail.store(slot * 0 + STOP)
    meet()
    mbarrier.arrive(q_full)
