"""AnchorAttention (arXiv 2505.23520).

    1. groups of step * block queries, single keys            -> arrange
    2. anchor of a query: its largest logit over the first
       keys and those of its group; score of a key before the
       group: max over the group's blocks of
       scale * mean q . k - mean anchor                        -> score
    3. keep the first keys, the group's own, and every key of
       score >= -theta                                         -> select
    4. exact attention on the kept keys, blocks and gathered
       columns in one softmax, drop the rest                   -> compute

theta is in units of the natural logarithm.

Differs from the paper:
- the code's torch form takes the first block as initial keys, its newest
  kernel step blocks; `initial` says how many, one block by default.
- keys that belong to both windows count once; the newest code's scan
  leaves out or counts twice some keys at their borders.
- queries behind the last whole group are dense, as in the code, and so is
  decoding. A chunk of a prefill has groups of its own.
- the anchors are computed apart from the attention, which computes these
  logits again; the code keeps its unfinished softmax and goes on.
- the anchors of a group are its own queries' logits in float32.
"""

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.stripes import Stripes
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.parameters import check_count
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.anchored import Anchored
from dit_sparse.select.forced import AtLeast


@register("anchor", arxiv="2505.23520", code="yuzhouzhang9/Anchor-Attention")
def anchor(theta=12.0, step=16, block=128, initial=0, dense_layers=0):
    check_count("step", step)
    check_count("block", block)
    if type(initial) is not int or initial < 0:
        raise ArgumentError(f"initial={initial!r} must be a count of keys (0: one block)")
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta != theta:
        raise ArgumentError(f"theta={theta!r} must be a number, e.g. 12.0; larger keeps more")
    return Method(
        arrange=Raster(step * block, 1),
        score=Anchored(block, step, initial or block),
        select=AtLeast(-theta),
        compute=Stripes(block),
        schedule=Schedule(0, dense_layers, "prefill"),
    )
