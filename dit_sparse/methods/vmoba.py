"""VMoBA, video mixture of block attention (arXiv 2506.23858).

    1. layer l cuts the keys into frame slabs (1), spatial columns
       over all frames (2) or boxes (3), the next in the cycle;
       queries in the same order, each a block of its own       -> arrange
    2. gate g[t, j] = q_t . mean(k block j)                     -> score
    3. per head rank all pairs (t, j) together, w = min-max of g;
       keep each t's own block and the best other pairs until
       sum w = tau * total                                      -> select
    4. exact attention of each t on its blocks, drop the rest   -> compute

unit="parts" counts the blocks of an axis; unit="tokens" takes the chunks
of the paper's tables, e.g. 3, (6, 8), (8, 12, 8) on a 24 x 36 x 64 grid.
select="topk" with scope="query" keeps k blocks per query, own included,
by partition: the paper's training-free setting. keep > 0 replaces tau
and k by that share of a pool's (query, block) pairs, own ones counted.

Differs from the paper:
- the paper does not say how similarities are normalised, nor that the own
  block is forced and counts towards tau; both follow the released code.
- the code keeps one pair more per pool even when the own blocks reach tau
  (extra=True does, too), and pools per query by default (scope="query").
- pools never mix samples; the code's head, block and overall pools span
  the packed batch. Pairs equal to the one that crosses tau are all kept.
- when nothing is routed the own blocks stay; the code turns dense.
- an axis is cut into nearly equal parts, at most its length; the code has
  one chunk for each video size, which must divide 2D and 3D axes, leaves
  a short last slab in 1D and allows slabs of part of a frame, not offered
  here. A pair counts once whatever its block's size, as there.
- a grid of one frame has one slab: layers of partition 1 are dense on
  images. Without a grid the blocks are equal and in raster order.
- each block visits the queries that chose it, as in the code, but without
  packed copies; a CPU visits the union of the choices of 128 neighbouring
  queries with a mask. The output is the same.
- joint text is exact and seen by all; the paper's model has none.
- the default is the paper's threshold; its runs without fine-tuning use
  top-k, for a threshold lets videos flicker there. Both start with 25 %
  dense steps; training, where the paper has none, needs dense_steps=0.
"""

from dit_sparse.arrange.partitions import Partitions
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.gates import TokenGate
from dit_sparse.select.gates import GateMass, GateShare


@register("vmoba", arxiv="2506.23858", code="KwaiVGI/VMoBA")
def vmoba(
    select="threshold",
    tau=0.25,
    scope="head",
    k=(2, 6, 18),
    keep=0.0,
    extra=False,
    cycle="123",
    unit="parts",
    slabs=8,
    columns=(6, 8),
    boxes=(3, 3, 8),
    dense_steps=0.25,
    dense_layers=0,
):
    if select not in ("threshold", "topk"):
        raise ArgumentError(f"select={select!r} must be 'threshold' or 'topk'")
    share, mass = GateShare(keep, k, cycle, scope), GateMass(tau, scope, extra)
    return Method(
        arrange=Partitions(cycle, unit, slabs, columns, boxes),
        score=TokenGate(),
        select=share if keep or select == "topk" else mass,
        compute=Attend(remainder=Drop(), per_token=True),
        schedule=Schedule(dense_steps, dense_layers),
    )
