"""A causal call as several calls to fewer queries, where its plan would not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dit_sparse.core import QKV, Context, Method

# numbers of a plan, about 25 bytes each while its stages run; query blocks of a part at least
CELLS, LEAST = 1 << 27, 8


def in_parts(method: Method, x: QKV, ctx: Context) -> Iterator[tuple[slice, QKV, Context]]:
    """Yield (queries, tensors, context) of the parts of a causal call, the last queries first.

    A plan over single keys grows with the square of the length; query blocks that come together
    keep it within CELLS. Keys that none of them sees are left out. The parts share the dict
    ctx.cache["parts"], for what a stage finds in the last one and needs in all.
    """
    queries, keys = x.q.shape[2], x.k.shape[2]
    # two keys tell whether a block holds more than one; to arrange all of them may be a sort, which
    # `plan` runs anyway
    some = QKV(x.q, x.k[:, :, :2], x.v[:, :, :2])
    rows, cols = method.arrange(some, replace(ctx, cache={}, state={}))
    blocks = max(LEAST, CELLS // (x.q.shape[0] * x.q.shape[1] * keys))
    if cols.size > 1 or not ctx.causal or rows.count <= blocks:
        yield slice(0, queries), x, ctx
        return
    parts: dict = {}
    for last in range(rows.count, 0, -blocks):
        own = slice(max(last - blocks, 0) * rows.size, min(last * rows.size, queries))
        seen = own.stop + keys - queries
        part = QKV(x.q[:, :, own], x.k[:, :, :seen], x.v[:, :, :seen])
        yield own, part, replace(ctx, cache={"parts": parts})
