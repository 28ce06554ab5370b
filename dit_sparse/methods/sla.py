"""SLA, sparse-linear attention (arXiv 2509.24006), and SLA2 (2602.12675).

    1. blocks of 64 tokens in raster order                    -> arrange
    2. score by mean q . mean k; in "sla2" both means first
       go through learned maps                                -> score
    3. per row the floor(keep * N) best blocks are critical,
       the floor(negligible * N) worst negligible, the rest
       marginal                                               -> select
    4. O_s: exact attention over the critical blocks,
       O_l = phi(Q) H / phi(Q) . Z over the marginal ones,
       H = sum phi(K_j)^T V_j,   Z = sum phi(k_n);
       O = O_s + O_l W^T + b,    W and b learned              -> compute

variant="masked": the paper's operator; with negligible=0 that of the
code's branch SLA-1. variant="global": that of its branch main (also of
TurboDiffusion and SageSLA): O_l over all keys, critical ones too, and
1e-5 added to its denominator. variant="sla2": O = alpha O_s + (1 - alpha)
O_l, alpha learned per query block, O_l over all that is not critical. A
checkpoint works with the variant, keep and block it was trained for only
(TurboDiffusion: "global", 0.1, (128, 64)). `negligible` is for "masked".

weights: path of a safetensors file (dit_sparse/weights.py says how its
names are read) with, for each layer, proj_l.weight [d, d], proj_l.bias
[d]; for "sla2" proj_q.weight, proj_k.weight [d, d] and alpha: [M], [H, M]
or [1], M the number of query blocks. They belong to a fine-tuned model,
which must be in the pipeline too: the projection alone is not enough.
Without weights W = 0, b = 0 and alpha = 1: the output is block-sparse
attention over the critical blocks, training-free.

Differs from the paper:
- inference only: no training loop, no SoftTop-k, no quantised kernel
  (SageSLA, SLA2's low-bit forward). Gradients of q, k, v flow with the
  choice frozen, as in the paper.
- the sums over blocks are one matrix product per head, M N d^2 multiply-
  adds; the code subtracts the critical blocks from the sum of all, which
  gives the same sums.
- a row keeps at least one block; floor in the code can give none.
- blocks are 64 x 64 as in the paper; the code advises block=(128, 64).
- means and scores stay in float32, so keys are not centred first: that
  shifts all scores of a row alike and changes no choice.
- for bfloat16 and float16 tensors the branch and its projection run in
  bfloat16 with float32 sums, as the code's under autocast; states and
  their sums are stored so too, the denominator in float32.
- a row without marginal blocks has O_l = 0; in "sla2" it keeps O_s whole.
- SLA2 published neither code nor weights: names and shapes are ours, and
  alpha is stored as it is used, in (0, 1). Its maps may have a bias.
- phi is softmax, elu + 1 or relu; hedgehog is missing, as in the code.
- joint text is always exact and takes no part in the linear branch; the
  paper has none.
"""

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.linear import Linear
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.mapped import MappedDot
from dit_sparse.select.topk import TopK

PROJECTION = ("proj_l.weight", "proj_l.bias")
SLA2 = ("proj_q.weight", "proj_q.bias", "proj_k.weight", "proj_k.bias", "alpha")
VARIANTS = {"masked": PROJECTION, "global": PROJECTION, "sla2": SLA2}


@register("sla", arxiv="2509.24006", code="thu-ml/SLA")
def sla(
    keep=0.05,
    negligible=0.1,
    variant="masked",
    phi="softmax",
    block=(64, 64),
    weights="",
    dense_steps=0,
    dense_layers=0,
):
    if variant not in VARIANTS:
        raise ArgumentError(f"variant={variant!r} must be one of {', '.join(VARIANTS)}")
    if not isinstance(block, tuple | list) or len(block) != 2:
        raise ArgumentError(f"block={block!r} must be two sizes (query, key), e.g. (128, 64)")
    if not isinstance(weights, str):
        raise ArgumentError(f"weights={weights!r} must be the path of a file, as a string")
    mix, score = variant == "sla2", MappedDot(learned=variant == "sla2")
    return Method(
        arrange=Raster(*block),
        score=score,
        select=TopK(keep),
        compute=Attend(
            Linear(
                phi,
                scope="all" if variant == "global" else "rest",
                mix=mix,
                negligible=negligible if variant == "masked" else 0.0,
                score=score if variant == "masked" else None,
            )
        ),
        schedule=Schedule(dense_steps, dense_layers),
        weights=weights or None,
        tensors=VARIANTS[variant],
    )
