"""Query tiles of the Hopper kernel in an order: rows of q that do not stand side by side.

A consumer fetches the 64 rows it folds itself, into the layout in which a copy would have put them;
no copy by tensor map gathers rows on Hopper.
"""

# Gluon's types are those of the compiler
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from dit_sparse.kernels._hopper_feed import meet


@gluon.jit
def row_places(order, start, end, LAYOUT: gl.constexpr, HAS_ORDER: gl.constexpr):
    """Return where the 64 queries from `start` stand, and which of them are below `end`."""
    rows = start + gl.arange(0, 64, LAYOUT)
    live = rows < end
    if HAS_ORDER:
        rows = gl.load(order + rows, mask=live, other=0).to(gl.int32)
    return rows, live


@gluon.jit
def own_order(queries, bh, heads):
    """Return the pointers to the order and the queries of a head."""
    order_ptr, q_ptr, stride_ib, stride_ih, stride_qb, stride_qh, _stride_qs = queries
    b = (bh // heads).to(gl.int64)
    h = (bh % heads).to(gl.int64)
    return order_ptr + b * stride_ib + h * stride_ih, q_ptr + b * stride_qb + h * stride_qh


@gluon.jit
def take_queries(q_smem, order, q_ptr, stride_qs, start, end, DIM: gl.constexpr):
    """Load 64 queries [64, DIM] from `start` by their order into shared memory."""
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [256 // DIM, DIM // 8], [4, 1], [1, 0])
    rows, live = row_places(order, start, end, gl.SliceLayout(1, flat), True)
    d = gl.arange(0, DIM, gl.SliceLayout(0, flat))
    at = q_ptr + (rows.to(gl.int64) * stride_qs)[:, None] + d[None, :]
    q_smem.store(gl.load(at, mask=live[:, None], other=0.0))
    # the products read it as the tensor cores do
    fence_async_shared()
    meet()
