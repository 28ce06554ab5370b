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
vhat_j = sum_n v_n, Hsum = sum_j H_j.

Differs from the paper:
- the released kernel forgets to rescale g when a later group of columns
  raises the running maximum; here all three accumulators are rescaled.
- the norm is that of H_j, as in the released code; the text has H_j minus
  their mean.
- video blocks are 4 x 4 x 4 boxes of the token grid (images 8 x 8), as in
  the released FLUX processor; no order was published for video. On a grid
  that the tile does not divide the boxes are nearly equal, and their order
  is cut every 64 tokens.
- joint text is always exact and takes no part in the covariance; the code
  routes it like any block.
"""

from dit_sparse.arrange.tiles import Tiles
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Taylor
from dit_sparse.core import Method
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.pooled import PooledDot
from dit_sparse.select.topk import TopK


@register("pisa", arxiv="2602.01077", code="xie-lab-ml/piecewise-sparse-attention")
def pisa(keep=0.125, order=1, error_bias=True, tile=(4, 4, 4), dense_steps=0, dense_layers=0):
    return Method(
        arrange=Tiles(tuple(tile), still=(1, 8, 8), uniform=True),
        score=PooledDot(error_bias=error_bias),
        select=TopK(keep),
        compute=Attend(remainder=Taylor(order)),
        schedule=Schedule(dense_steps, dense_layers),
    )
