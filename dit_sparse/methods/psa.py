"""PSA, pyramid sparse attention (arXiv 2512.04025).

    1. order the video along a generalised Hilbert curve and cut
       it into blocks, 128 queries and 128 keys each             -> arrange
    2. importance of a key block to a query block: the largest
       softmax weight among a quarter of their tokens, rows
       normalised to sum 1                                       -> score
    3. by falling importance, cut each row at cumulative bounds
       (of its mass, or of its blocks): exact, pooled by 2, by 4,
       by 8, skipped; a key block whose neighbouring keys differ
       is pooled less far                                        -> select
    4. one softmax over exact keys and pooled ones; a pooled key
       of n tokens has their mean and the bias ln n              -> compute

Defaults: block, bounds, order and dense_steps are the paper's for
Wan2.1-14B; with rule="quota" the bounds are those for CogVideoX1.5-5B,
(.10, .15, .15, .35). keep above 0 takes the quota rule and scales the
bounds until the share `keep` of the work is computed. levels=(1,) is the
paper's binary baseline.

Differs from the paper:
- the quarter of the tokens is the same for all heads and blocks, one token
  in each of block/4 strata, and moves with the step; the released code
  draws it at random, without a seed.
- the released code divides by the row's largest exponential instead of its
  sum: norm="max". After the division of each row of blocks by its sum the
  two still differ, for a block takes the maximum over several query rows.
- the released code counts the block that crosses a threshold to the finer
  level, and computes 6 % of each row exactly: rule="released". Here the
  best block of a row is always exact, under every rule.
- importance is float32; the code rounds it to the input's dtype, so that
  many blocks tie.
- pooled tokens and the similarity cap count real tokens only; the code
  repeats the last token up to a whole block and counts its copies.
- groups of columns are listed one by one, so the levels' lengths need not
  be rounded to fill tiles as the released kernels demand.
- text is exact for and by all tokens, and not sampled; the code keeps text
  columns only, and only in one of its two kernels.
- its k-means and hybrid orders, and the causal variant for language
  models, are not offered.
"""

from dataclasses import dataclass
from math import gcd

from dit_sparse.arrange.curves import Curve
from dit_sparse.arrange.raster import Raster
from dit_sparse.arrange.tiles import Tiles
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.pyramid import Pyramid
from dit_sparse.core import QKV, Arrange, Context, Layout, Method
from dit_sparse.errors import ArgumentError
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.sampled import Sampled
from dit_sparse.select.levels import Levels

BOUNDS = {
    "threshold": {1: 0.4, 2: 0.5, 4: 0.6, 8: 0.8},
    "quota": {1: 0.1, 2: 0.15, 4: 0.15, 8: 0.35},
}


@dataclass(frozen=True)
class Apart:
    """Queries arranged in one way, keys in another."""

    q: Arrange
    kv: Arrange

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        return Layout(self.q(x, ctx).q, self.kv(x, ctx).kv)


def _tile(block: int) -> Tiles:
    """Return the paper's tile (2, 8, 8) for a block of 128 tokens, or one of the same kind."""
    width = gcd(block, 8)
    height = gcd(block // width, 8)
    return Tiles((block // width // height, height, width), uniform=True)


ORDERS = {"gilbert": Curve, "raster": Raster, "tiles": _tile}


@register("psa", arxiv="2512.04025", code="ziplab/Pyramid-Sparse-Attention")
def psa(
    keep=0.0,
    block=(128, 128),
    rule="threshold",
    bounds=(),
    levels=(1, 2, 4, 8),
    importance="max",
    norm="sum",
    similarity=(),
    order="gilbert",
    dense_steps=0.3,
    dense_layers=0,
):
    sizes, levels, similarity = tuple(block), tuple(levels), tuple(similarity)
    if len(sizes) != 2 or not all(type(n) is int and n > 0 and n % 8 == 0 for n in sizes):
        raise ArgumentError(
            f"block={block!r} must be two multiples of 8, tokens per query and per key block"
        )
    if order not in ORDERS:
        raise ArgumentError(f"order={order!r} must be one of {', '.join(map(repr, ORDERS))}")
    default = BOUNDS["quota" if keep or rule == "quota" else "threshold"]
    bounds = tuple(bounds) or tuple(default.get(f, 1.0) for f in levels)
    # a similarity cap may turn a level into any finer one
    pooled = tuple(f for f in (2, 4, 8) if f in levels or (similarity and f < max(levels)))
    return Method(
        arrange=Apart(*(ORDERS[order](n) for n in sizes)),
        score=Sampled(importance, norm, similarity),
        select=Levels(levels, bounds, rule, keep, capped=bool(similarity)),
        compute=Attend(remainder=Pyramid(pooled)),
        schedule=Schedule(dense_steps, dense_layers),
    )
