"""PISA, piecewise sparse attention (arXiv 2602.01077).

    1. cut the video into blocks of 64 tokens                    -> arrange
    2. score by scale * mean q . mean k + log ||H_j||            -> score
    3. keep the floor(keep * N) best key blocks of each row      -> select
    4. exact attention on the kept blocks, and the Taylor
       expansion of exp(q . k) around the block mean for the
       rest, first order with one global covariance:
       o = (exact + sum_j e_j vhat_j + g/N * scale * q Hsum)
           / (exact mass + g),     g = sum_j n_j e_j            -> compute

H_j = sum_n (k_n - kbar_j)^T v_n is the key-value covariance of block j,
vhat_j = sum_n v_n, Hsum = sum_j H_j. order=0 leaves the covariance out;
first_order="block" gives each block its own, at the cost of dense
attention.
Published settings: FLUX keep=0.15, dense_layers=4; video keep=0.125, with
and without dense first steps, whose number was not published.

Differs from the paper:
- the released kernel forgets to rescale g when a later group of columns
  raises the running maximum; here all three accumulators are rescaled.
- the norm is that of H_j, as in the released code; the text, which we know
  from a digest only, has H_j minus their mean: deviation=True.
- the softmax over the scores is left out, for it changes no ranking.
- g / N weighs a short last block by its tokens, as in the released code;
  the text counts blocks. The mean of the deviations counts blocks.
- video blocks are 4 x 4 x 4 boxes of the token grid (images 8 x 8, as in
  the released FLUX processor); no order was published for video. On a
  grid that the tile does not divide the boxes are nearly equal, and their
  order is cut every 64 tokens. queries=128 makes query blocks of two
  boxes, for which a GPU reads half as many keys; the paper has 64.
- joint text is always exact and takes no part in the covariance; the code
  routes it like any block, and later protects one block by its sink, here
  `sinks`, counted over the video blocks.
- means are held in the dtype of k and v, one column per block, and H is
  summed in float32; the code holds sums and every H_j in bfloat16.
- the code's other kernels are not offered: v3 (one covariance around the
  global mean key) and 0th (zeroth order, scored by key variance).
- causal attention, not in the paper, needs order=0 or
  first_order="block".
"""

from dataclasses import dataclass

from torch import Tensor

from dit_sparse.arrange.tiles import Tiles
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Taylor
from dit_sparse.core import QKV, Blocks, Context, Known, Layout, Method
from dit_sparse.errors import ArgumentError
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.pooled import PooledDot
from dit_sparse.select.topk import TopK


@dataclass(frozen=True, kw_only=True)
class Sinks(PooledDot):
    """PooledDot that ranks the key blocks `sinks` of `tiles` before all others, in every row."""

    sinks: tuple[int, ...]
    tiles: Tiles

    def __post_init__(self) -> None:
        if not all(type(j) is int for j in self.sinks):
            raise ArgumentError(f"sinks={self.sinks!r} must be numbers of key blocks, e.g. (0, -1)")

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        self._within(layout.kv)
        score = super().__call__(x, layout, ctx)
        for j in self.sinks:
            score[..., j] = float("inf")
        return score

    def check(self, known: Known) -> None:
        if known.grid is not None:
            self._within(self.tiles.blocks(known.grid))

    def _within(self, blocks: Blocks) -> None:
        if not all(-blocks.video <= j < blocks.video for j in self.sinks):
            raise ArgumentError(
                f"sinks={self.sinks!r} must lie within the {blocks.video} key blocks"
            )


@register("pisa", arxiv="2602.01077", code="xie-lab-ml/piecewise-sparse-attention")
def pisa(
    keep=0.125,
    order=1,
    first_order="global",
    error_bias=True,
    deviation=False,
    sinks=(),
    tile=(4, 4, 4),
    queries=None,
    dense_steps=0,
    dense_layers=0,
):
    tiles = Tiles(tuple(tile), still=(1, 8, 8), uniform=True, queries=queries)
    score = PooledDot(error_bias=error_bias, deviation=deviation)
    if sinks:
        score = Sinks(error_bias=error_bias, deviation=deviation, sinks=tuple(sinks), tiles=tiles)
    return Method(
        arrange=tiles,
        score=score,
        select=TopK(keep),
        compute=Attend(remainder=Taylor(order, first_order)),
        schedule=Schedule(dense_steps, dense_layers),
    )
