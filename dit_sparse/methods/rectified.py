"""Rectified SpaAttn (arXiv 2511.19835).

    1. order the video along a Hilbert curve, cut it every 128
       tokens, text behind                                     -> arrange
    2. p_ij: softmax over block means, a block of c tokens
       weighing c times and each text token being a key of
       its own (isolated pooling, IPAR)                        -> score
    3. per row keep the best blocks until their p passes
       p_remain, at least the share `keep`; add the blocks
       that touch the row's own in space and time              -> select
    4. exact attention on the kept blocks, then per block
       O = R_i O + Y_i: Y_i = sum of p_ij mean v_j over the
       dropped blocks where |q_i k_j| exceeds the error of
       pooling (GAPR), R_i = 1 - sum of these p_ij             -> compute

The error is |a_i k_j| + |q_i a_j|, a the mean absolute deviation of the
block by channel. rectify="ipar" compensates every dropped block, "none"
leaves the sparse output as it is. The models' published values (keep,
dense_layers, dense_steps of 50, for A14B of 40): Hunyuan .2, 0, 0;
Wan2.1 T2V .25, 2, 5; I2V .25, 2, 0; Wan2.2 A14B .15, 2, 3 (I2V 0), 5B
.25, 2, 5; CogVideoX1.5 .15 (I2V .25), 0, 5; FLUX .1, (37, ..., 56), 0;
all with p_remain .3.

Differs from the paper:
- the paper's body was not at hand: the formulas are those of the released
  code, its parameter drop_rate being 1 - keep.
- a short last block is pooled over its real tokens and weighs as many;
  the code pads it with zeros, divides by 128 and counts it as full.
- with text, the code's drop_rate=0 can still drop one block, for the text
  takes a place of the ranking; here keep=1 keeps all. A row always keeps
  a video block. At a sum of exactly p_remain one block less is kept.
- neighbours="within" ranks the neighbours first within the budget; with
  p_remain=0 the density is then `keep`. The code adds them to the choice
  (the default); so the measured density is above `keep`.
- the code's "first frame" for Wan, the first blocks of the curve, is not
  the first frame. It is left out; first_frame=True lets the blocks that
  hold tokens of frame 0 attend each other, as its comment says.
- the error's signed products can cancel, as in the code; bound=True takes
  absolute ones, an upper bound of the first-order error.
- order="raster" is an alternative that the code has commented out.
  Without a grid the sequence is cut, and its adjacent blocks are
  neighbours.
- R_i is applied in float32; the code rounds it to the tensors' type.
- the first steps of the second Wan2.2 expert cannot be made dense alone:
  dense_steps counts the steps of the whole generation.
- no INT8, no TeaCache. Padded text: the code zeroes it; here a call with
  an attention mask stays dense.
"""

from dit_sparse.arrange.curves import Curve
from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.rectify import Rectify
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.isolated import Isolated
from dit_sparse.select.floor import FloorTopP


@register("rectified", arxiv="2511.19835", code="BienLuky/Rectified-SpaAttn")
def rectified(
    keep=0.2,
    p_remain=0.3,
    block=128,
    order="hilbert",
    neighbours="union",
    first_frame=False,
    rectify="full",
    bound=False,
    dense_steps=0,
    dense_layers=0,
):
    if order not in ("hilbert", "raster"):
        raise ArgumentError(f"order={order!r} must be 'hilbert' or 'raster'")
    if rectify not in ("full", "ipar", "none"):
        raise ArgumentError(f"rectify={rectify!r} must be 'full', 'ipar' or 'none'")
    if type(block) is not int or block < 1:
        raise ArgumentError(f"block={block!r} must be a count of tokens, at least 1")
    gapr = rectify == "full"
    return Method(
        arrange=Curve(block) if order == "hilbert" else Raster(block),
        score=Isolated(spread=gapr),
        select=FloorTopP(keep, p_remain, neighbours, first_frame),
        compute=Attend(remainder=Drop() if rectify == "none" else Rectify(gapr, bound)),
        schedule=Schedule(dense_steps, dense_layers),
    )
