"""Sparse-vDiT (arXiv 2506.03065).

    1. a table gives each head of each layer (and step) a mode:
       F full, S skip, D diagonal, M multi-diagonal, V stripes;
       M heads are reordered from f * P + p to p * F + f     -> arrange
    2. D, M: minus the distance of the blocks; V: minus the
       rank of the key block in a fixed list                 -> score
    3. keep everything (F), nothing (S), a band (D, M), the
       top of the list (V)                                   -> select
    4. exact attention on kept blocks, all heads in one
       launch, drop the rest; skipped heads give 0           -> compute

F frames of P tokens. diagonal, multi_diagonal and stripe are the shares
1 - S_i that D, M and V keep; keep, when not 0, stands for all three.

table: a string, one letter per head, for every layer and step (a short
one repeats over the heads); a list of strings, one per layer; or a list
of such lists, one per step. Tables of layers belong in a profile.

Differs from the paper:
- the paper's table is found by a search on the model. The default here,
  DM by turns, is the same for any model: every layer has heads that look
  around in a frame and heads that look along time, and none is skipped on
  trust. At equal density it lost less than DMV on the built-in model.
- the paper gives neither shares nor widths: S = .85, .85 and .9, and the
  band whose density is nearest to the share. A list of stripes takes
  blocks of the first frame and of the rest by turns, each evenly spaced;
  one list serves all heads.
- shares count the text, which is exact and visible to all except in
  skipped heads; the paper does not speak of it.
- the first 20 % of the steps are dense, as for the paper's baselines; it
  claims to need none for CogVideoX1.5 and is silent on other models.
- heads are not grouped by mode: a mode is nothing but the lists and the
  order of a head, so one launch serves all.
"""

from dit_sparse.arrange.frames import Frames
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.parameters import check_share
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.geometric import Geometric
from dit_sparse.select.per_head import PerHead, Table


@register(
    "sparse_vdit",
    arxiv="2506.03065",
    code="Peyton-Chen/Sparse-vDiT",
    xfail={"head_equivariant": "the table gives every head number its own mode"},
)
def sparse_vdit(
    table="DM",
    diagonal=0.15,
    multi_diagonal=0.15,
    stripe=0.10,
    keep=0.0,
    block=64,
    dense_steps=0.2,
    dense_layers=0,
):
    check_share("keep", keep, zero="the three shares as given")
    if keep:
        diagonal = multi_diagonal = stripe = keep
    modes = Table(table)
    return Method(
        arrange=Frames(block, modes),
        score=Geometric(modes=modes),
        select=PerHead(modes, diagonal, multi_diagonal, stripe),
        compute=Attend(remainder=Drop()),
        schedule=Schedule(dense_steps, dense_layers),
    )
