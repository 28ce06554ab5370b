"""HyLRA, hybrid layer reuse attention (arXiv 2602.00777).

    1. blocks of 128 tokens in the model's order               -> arrange
    2. a full layer: exact attention mass of each block pair;
       the layers after it take the same scores                -> score
    3. full layers keep everything; the others, per row, the
       own block and as many best ones as hold `tokens`        -> select
    4. exact attention on the kept blocks, drop the rest       -> compute

policy: a letter per layer, F full or R reuse, repeated where it is short.
`plan_layers` finds the shortest list of full layers for which every other one
overlaps enough with the full layer before it and is not sensitive.

Differs from the paper:
- its code was not to be had, and its numbers are those of a summary: tokens,
  the block and the overlap of 0.85. The default policy, every fourth layer
  full, is ours: the paper calibrates one for each model.
- how rows and heads are joined is our reading: the mass of all rows of a
  block (in decoding there is one), a list for each query head.
- the mass is computed beside the attention of a full layer.
- own blocks are kept beside these tokens: nothing is seen in the future.
- a layer that finds no scores of an earlier one computes its own.
- keys stay on the device: no transfers of listed blocks from a host.
"""

from collections.abc import Sequence

from torch import Tensor

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.parameters import check_count
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.antidiagonal import Antidiagonal
from dit_sparse.score.layers import Relayed
from dit_sparse.select.forced import ForcedTopK
from dit_sparse.select.layers import Outside

# more layers than any model has
MOST = 1024


@register("hylra", arxiv="2602.00777")
def hylra(tokens=2048, block=128, policy="FRRR"):
    check_count("block", block)
    check_count("tokens", tokens)
    if not isinstance(policy, str) or not policy or set(policy) - set("FR") or policy[0] != "F":
        raise ArgumentError(f"policy={policy!r} must be letters F and R that begin with F")
    full = tuple(n for n in range(MOST) if policy[n % len(policy)] == "F")
    return Method(
        arrange=Raster(block),
        # the exact mass of a block pair is that of cells of one token
        score=Relayed(Antidiagonal(1), full),
        select=Outside(ForcedTopK(-(-tokens // block), others=True), full),
        compute=Attend(remainder=Drop()),
        schedule=Schedule(phase="both"),
    )


def plan_layers(overlap: Tensor, sensitive: Sequence[int] = (), theta=0.85) -> str:
    """Return the policy with the fewest full layers, among those the one of most overlap.

    overlap: [L, L], entry [i, j] the share of layer j's best keys that are also layer i's, i < j.
    Layer j may reuse those of i, the full layer before it, when that is at least theta and j is
    not in `sensitive`. The first layer and the last are full.
    """
    count, share = overlap.shape[0], overlap.tolist()
    # source -> (full layers, minus the overlap, policy), after the layers so far
    best: dict[int, tuple[int, float, str]] = {0: (1, 0.0, "F")}
    for j in range(1, count):
        found = {j: min((n + 1, s, p + "F") for n, s, p in best.values())}
        if j not in sensitive and j < count - 1:
            for i, (n, s, p) in best.items():
                if share[i][j] >= theta:
                    found[i] = (n, s - share[i][j], p + "R")
        best = found
    return min(best.values())[2]
