"""DraftAttention (arXiv 2505.14708).

    1. reorder so that each 8 x 16 patch of a frame is a block   -> arrange
    2. draft map: softmax(scale * mean q . mean k) over patches  -> score
    3. per head keep the share `keep` of the whole map
       (rule="head", as released) or of each row (rule="row")    -> select
    4. exact attention on the kept blocks, drop the rest,
       restore the order                                         -> compute

Differs from the paper:
- a row always keeps its best block; the released code can leave a row of a
  model without text tokens empty.
- a grid that the patch does not divide is cut into nearly equal patches
  instead of refused; a patch of n tokens counts n times in the softmax.
- dense first steps are a share of the steps (the paper's 25 %), not a fixed
  timestep.
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
    return Method(
        arrange=Tiles((1, *patch)),
        score=PooledDot(softmax=True),
        select=HeadTopK(keep) if rule == "head" else TopK(keep),
        compute=Attend(remainder=Drop()),
        schedule=Schedule(dense_steps, dense_layers),
    )
