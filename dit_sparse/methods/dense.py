"""Dense attention, the baseline of every comparison.

    1. keep the model's order, blocks of 64                      -> arrange
    2. products of block means                                   -> score
    3. keep every block                                          -> select
    4. full softmax attention by PyTorch                         -> compute

Source: scaled dot-product attention (arXiv 1706.03762).
Differs from the paper: none known.
"""

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import Dense
from dit_sparse.core import Method
from dit_sparse.registry import register
from dit_sparse.score.pooled import PooledDot
from dit_sparse.select.topk import TopK


@register("dense", arxiv="1706.03762")
def dense():
    return Method(arrange=Raster(), score=PooledDot(), select=TopK(1.0), compute=Dense())
