"""PBS-Attn, permuted block-sparse attention (arXiv 2510.21270).

    1. keys of each whole segment of 256 by falling softmax
       mass from the last 128 queries; blocks of 128           -> arrange
    2. softmax over the blocks of earlier segments of
       scale * mean q . mean k; score="antidiagonal", the
       paper's PBS-Attn+: XAttention's mass of these blocks    -> score
    3. per row keep the own segment, the block that now holds
       the first token, and the best earlier blocks until
       their mass reaches top_p                                -> select
    4. exact attention on the kept blocks, those of the own
       segment in the given order, drop the rest               -> compute

grouped=True: one order per key head, by the mean of its query heads.

Differs from the paper:
- keys and values stand before the kernel twice, ordered and as given;
  its kernel carries positions instead and tests them in the own segment.
  The output is the same.
- the mass that sorts the keys is causal, and over whole segments alone;
  the code lets the last block see the keys behind its queries.
- top_p = 1 keeps every block; in the code a float 1.0 can keep none.
- in a chunk of a prefill, the segments are those of all keys so far, and
  a query block may meet two.
- dense in decoding, and up to one segment, as in the code.
"""

from dit_sparse.arrange.segments import SortedSegments
from dit_sparse.compute.segments import AttendSegments
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.antidiagonal import Antidiagonal
from dit_sparse.score.pooled import PooledDot
from dit_sparse.score.segments import EarlierSegments
from dit_sparse.select.forced import AndForced
from dit_sparse.select.topp import TopP


@register("pbs_attn", arxiv="2510.21270", code="xinghaow99/pbs-attn")
def pbs_attn(
    top_p=0.9, segment=256, block=128, score="mean", stride=8, grouped=False, dense_layers=0
):
    if score not in ("mean", "antidiagonal"):
        raise ArgumentError(f"score={score!r} must be 'mean' or 'antidiagonal'")
    pooled = score == "mean"
    return Method(
        arrange=SortedSegments(segment, block, grouped),
        score=EarlierSegments(PooledDot() if pooled else Antidiagonal(stride), segment, pooled),
        select=AndForced(TopP(top_p)),
        compute=AttendSegments(segment),
        schedule=Schedule(0, dense_layers, "prefill"),
    )
