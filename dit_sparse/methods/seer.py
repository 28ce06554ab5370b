"""SeerAttention (arXiv 2410.13276), the gate of the prefill.

    1. blocks of 64 tokens in the model's order                -> arrange
    2. gate: learned maps of pooled queries (mean) and keys
       (max, min, mean), before their rotation; dot product,
       softmax over the past blocks                            -> score
    3. per row keep the blocks above `threshold`, or with
       ratio > 0 the best ones, and the own block              -> select
    4. exact attention on the kept blocks, drop the rest       -> compute

ratio: the share of the past that is kept over all rows, 1 - sqrt(1 - ratio)
of the blocks in each.

weights: path of a safetensors file (dit_sparse/weights.py says how its names
are read) with, for each layer, gate_q.weight [H, d, G], gate_k.weight
[Hkv, 3 d, G] and inv_freq [R / 2], the frequencies of the model's rotation
(none: a model without). `block_max_map` of dit_sparse/score/seer.py is the
map that the gate is distilled from. Without weights the gate is the product
of block means as they are, training-free and not SeerAttention.

Differs from the paper:
- the attention function of a model sees queries and keys after their
  rotation; they are turned back, which is exact up to rounding for plain
  rotary positions of the first R channels by halves.
- the own block is always kept; the code trusts its gate.
- names and shapes of the tensors are ours: the released gates must be
  renamed, and inv_freq added.
- queries of a chunk have the positions behind the keys before them.
- the prefill alone: the decode gate is another paper (2506.08889).
- inference and the target of the distillation; no training loop.
"""

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.parameters import check_share
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.seer import SeerGate
from dit_sparse.select.forced import AtLeast
from dit_sparse.select.past import CausalShare


@register("seer", arxiv="2410.13276", code="microsoft/SeerAttention")
def seer(threshold=5e-4, ratio=0.0, block=64, weights="", dense_steps=0, dense_layers=0):
    check_share("ratio", ratio, zero="the threshold alone counts")
    check_share("threshold", threshold, zero="every block")
    if not isinstance(weights, str):
        raise ArgumentError(f"weights={weights!r} must be the path of a file, as a string")
    return Method(
        arrange=Raster(block),
        score=SeerGate(),
        select=CausalShare(ratio) if ratio else AtLeast(threshold),
        compute=Attend(remainder=Drop()),
        schedule=Schedule(dense_steps, dense_layers, "prefill"),
        weights=weights or None,
        tensors=("gate_q.weight", "gate_k.weight", "inv_freq"),
    )
