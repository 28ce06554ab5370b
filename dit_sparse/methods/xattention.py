"""XAttention (arXiv 2503.16428).

    1. blocks of 128 tokens in the model's order               -> arrange
    2. score: sums along the antidiagonals of stride x stride
       cells as logits, softmax over the cells of a row, sum
       of the cells in a block                                 -> score
    3. per row keep the first and the own block, then the best
       until the share tau of the mass is kept                 -> select
    4. exact attention on the kept blocks, drop the rest       -> compute

heads: a share tau for each head of each layer, instead of one for all;
`calibrate` finds them from dense attention maps of an example.

Differs from the paper:
- the logits are divided by sqrt(d) and the stride, as in the code; some
  summaries divide by sqrt(d * stride).
- tau of a head: the code publishes tables, the paper a dynamic program
  over the heads; `calibrate` follows the published rule for one row and
  takes the mean over the rows, which is ours.
- a chunk of a prefill starts its cells at its first query, wherever that
  stands; the code has no chunks.
- a short last block has the cells that it has; the code pads.
- dense in decoding, as the paper. Without causality, on videos, no block
  is forced, as in the code; the first steps are the schedule's.
"""

import torch
from torch import Tensor

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import QKV, Context, Method
from dit_sparse.errors import ArgumentError
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.antidiagonal import Antidiagonal
from dit_sparse.select.forced import ForcedTopP


@register("xattention", arxiv="2503.16428", code="mit-han-lab/x-attention")
def xattention(tau=0.9, stride=8, block=128, heads=(), dense_steps=0, dense_layers=0):
    score = Antidiagonal(stride)
    if block % stride:
        raise ArgumentError(f"block={block!r} must be a multiple of stride={stride!r}")
    return Method(
        arrange=Raster(block),
        score=score,
        select=ForcedTopP(tau, heads),
        compute=Attend(remainder=Drop()),
        schedule=Schedule(dense_steps, dense_layers, "prefill"),
    )


def calibrate(x: QKV, stride=8, block=128, cover=0.9, most=0.96) -> Tensor:
    """Return a share tau for each head, [H], from queries and keys of causal attention.

    Per row: the fewest blocks that hold the share `cover` of the true mass; the least score among
    them; the share of the scores' mass that is at least as large. Mean over rows and samples.
    """
    ctx = Context(causal=True, impl="torch")
    layout = Raster(block)(x, ctx)
    truth, score = (Antidiagonal(s)(x, layout, ctx) for s in (1, stride))
    order = truth.argsort(-1, descending=True)
    before = truth.gather(-1, order).cumsum(-1).roll(1, -1)
    before[..., 0] = 0
    needed = before < cover * truth.sum(-1, keepdim=True)
    needed = torch.zeros_like(needed).scatter_(-1, order, needed)
    least = score.masked_fill(~needed, float("inf")).amin(-1, keepdim=True)
    share = score.masked_fill(score < least, 0).sum(-1) / score.sum(-1)
    return share.mean((0, 2)).clamp(max=most)
