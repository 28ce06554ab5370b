"""DraftAttention (arXiv 2505.14708).

    1. reorder so that each 8 x 16 patch of a frame is a block   -> arrange
    2. draft map: softmax(scale * mean q . mean k) over patches  -> score
    3. per head keep the share `keep` of the whole map
       (rule="head", as released) or of each row (rule="row")    -> select
    4. exact attention on the kept blocks, drop the rest,
       restore the order                                         -> compute

Published settings: HunyuanVideo keep=0.4, 0.2 or 0.1, Wan 0.45 or 0.25;
frames of 48 x 80 tokens or more in patches of 8 x 16.

Differs from the paper:
- it takes the best scores without saying of what: the released code takes
  one threshold of softmax values for a whole head, which is the default.
  The largest dropped value and its equals are kept, as in the code.
- a row always keeps its best block; the released code can leave a row of
  a model without text tokens empty, and its kernel's result undefined.
- a grid that the patch does not divide is cut into nearly equal patches
  instead of refused; a patch of n tokens counts n times in the softmax.
- dense first steps are a share of the steps (the paper's 25 %), not a
  fixed timestep as in the code. One layer is dense as in the code for
  Wan; for HunyuanVideo the code has two, of the dual-stream blocks alone.
- joint text is exact and seen by all, as in the code, but in blocks of
  its own and as long as it is: no padding to 256 slots.
- means and map are held in float32. Max pooling, an ablation that came
  out worse, is not offered.
- without a grid patches are runs of as many tokens; causal attention, not
  in the paper, needs rule="row".
"""

from dit_sparse.arrange.tiles import Tiles
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.pooled import PooledDot
from dit_sparse.select.topk import HeadTopK, TopK


@register("draft", arxiv="2505.14708", code="shawnricecake/draft-attention")
def draft(keep=0.25, patch=(8, 16), rule="head", dense_steps=0.25, dense_layers=1):
    if rule not in ("head", "row"):
        raise ArgumentError(f"rule={rule!r} must be 'head' or 'row'")
    if len(patch) != 2 or not all(type(edge) is int and edge > 0 for edge in patch):
        raise ArgumentError(
            f"patch={patch!r} must be two counts of tokens (height, width), each at least 1"
        )
    return Method(
        arrange=Tiles((1, *patch)),
        score=PooledDot(softmax=True),
        select=HeadTopK(keep) if rule == "head" else TopK(keep),
        compute=Attend(remainder=Drop()),
        schedule=Schedule(dense_steps, dense_layers),
    )
