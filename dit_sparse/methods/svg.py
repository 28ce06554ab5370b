"""SVG, Sparse VideoGen (arXiv 2502.01776).

    1. per head, sample 64 video queries; compute their full output
       and that of the band below in both orders; take frame-major
       tokens (f * P + p, a spatial head) or token-major ones
       (p * F + f, a temporal head), whichever errs less     -> arrange
    2. score block pairs by minus their distance on that
       axis; first_frame: the first P keys are near all      -> score
    3. keep the band around the diagonal that fills `keep`   -> select
    4. exact attention on the band, drop the rest, restore
       the order                                             -> compute

F frames of P tokens. The band's half-width follows from `keep`, which
counts text and first-frame columns too; without them it is
F (1 - sqrt(1 - keep)) frames.

Differs from the paper:
- the band is cut in blocks of `block` tokens, at the width whose density
  is nearest to `keep`; the code masks tokens, and its maintainers find
  the same quality with blocks.
- first_frame=True keeps the first P keys of the arranged axis for all
  queries: one mask for both orders, as the code has it for Wan. In a
  frame-major head this is the first frame; in a token-major one it is the
  first P / F patches of all frames, for the first frame itself is one
  token of every patch there, a part of every block. Off by default, as
  the code is for HunyuanVideo: it takes 1 / F of the map from the band,
  which few frames cannot spare. A single frame has no first frame.
- the sampled queries are spread evenly over the whole video, at places
  that move with the step and are the same for all heads; the code draws
  them from the first 10,000 tokens.
- the order is chosen by the mask that is then computed, with products in
  the tensors' dtype and float32 sums; the code chooses by fixed bands of
  1.5 to 2 frames.
- all text tokens see and are seen by everything; the code leaves padding
  out.
- dense steps and layers differ by model in the code: 20 % and one here.
"""

from dit_sparse.arrange.frames import SampledFrames
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.geometric import Geometric
from dit_sparse.select.per_head import Band


@register("svg", arxiv="2502.01776", code="svg-project/Sparse-VideoGen")
def svg(keep=0.25, first_frame=False, rows=64, block=64, dense_steps=0.2, dense_layers=1):
    score, select = Geometric(first_frame), Band(keep, first_frame)
    return Method(
        arrange=SampledFrames(score, select, block, rows),
        score=score,
        select=select,
        compute=Attend(remainder=Drop()),
        schedule=Schedule(dense_steps, dense_layers),
    )
