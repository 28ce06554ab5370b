"""MoBA, mixture of block attention (arXiv 2502.13189), with FlashMoBA's
small blocks and key convolution (2511.11571).

    1. key blocks of `block` tokens; every query by itself     -> arrange
    2. gate g[t, b] = q_t . mean(k block b)                    -> score
    3. each query keeps its own block and the best past ones,
       topk in all                                              -> select
    4. exact attention of each query on its blocks, causal in
       its own, drop the rest                                  -> compute

FlashMoBA's setting is the default: 8 blocks of 128, of 8,192 tokens. MoBA
took 3 to 12 blocks of 2,048 or 4,096 tokens.

weights: path of a safetensors file with key_conv.weight [Hkv * d, 3 or 5]
for each layer: FlashMoBA's depthwise causal convolution of the keys.

Differs from the paper:
- inference only; the models of the papers were trained with it. On others
  it is a training-free approximation.
- one softmax over the kept blocks; the code merges own and routed blocks
  by their log-sum-exps, which gives the same output.
- FlashMoBA's code does not hold its convolution; k + silu(conv(k)), on
  the keys the layer attends to, after their rotation, and for the gate
  alone is our reading.
- decoding is dense, as the authors do.
- the means are over the tokens there are; a short last block is nobody's
  past, so that no query of another block can choose it.
- without causality, on videos, the same; the paper has none.
"""

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.parameters import check_count
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.gates import TokenGate
from dit_sparse.score.routing import Convolved
from dit_sparse.select.forced import ForcedTopK


@register("moba", arxiv="2502.13189", code="MoonshotAI/MoBA")
def moba(topk=8, block=128, weights="", dense_steps=0, dense_layers=0):
    check_count("topk", topk)
    if not isinstance(weights, str):
        raise ArgumentError(f"weights={weights!r} must be the path of a file, as a string")
    return Method(
        arrange=Raster(1, block),
        score=Convolved(TokenGate()),
        select=ForcedTopK(topk),
        compute=Attend(remainder=Drop(), per_token=True),
        schedule=Schedule(dense_steps, dense_layers, "prefill"),
        weights=weights or None,
        tensors=("key_conv.weight",),
    )
