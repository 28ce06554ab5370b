"""DELTA, dynamic layer-aware token attention (arXiv 2510.09883).

    1. pages of 16 keys; every new token by itself             -> arrange
    2. a delta layer: exact attention probabilities, largest of
       all heads, summed in each page; the layers after it
       take the same scores                                    -> score
    3. the first layers and the delta layers keep everything;
       the others the newest `recent` pages and the best
       older ones, `pages` in all, the same for all heads      -> select
    4. exact attention on the kept pages, drop the rest        -> compute

deltas: numbers of the delta layers. The default is the paper's for 28 layers;
its 48 layers have (2, 6, 42). `place` finds them from attention maps.

Differs from the paper:
- probabilities are computed beside the attention of a delta layer; the
  code takes them from its dense kernel.
- a layer that finds no scores of an earlier delta layer, as without a
  model, computes its own; the code takes the newest pages.
- drafted tokens, a few at a time, choose their pages one by one.
- pages begin at the first token of a sequence, so that padding on the
  left takes no part in them. The prefill is dense, as in the paper.
- `place` takes the largest changes that lie at least `apart` layers from
  each other; the paper spaces them out without saying how.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.parameters import check_count
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.layers import PageMass, Relayed
from dit_sparse.select.layers import Outside, RecentTopK


@register("delta", arxiv="2510.09883", code="hoenza/DELTA")
def delta(pages=64, recent=8, page=16, first=2, deltas=(2, 14, 22)):
    check_count("page", page)
    deltas = tuple(deltas)
    if type(first) is not int or first < 0:
        raise ArgumentError(f"first={first!r} must be a number of layers, at least 0")
    if not all(type(n) is int and n >= 0 for n in deltas):
        raise ArgumentError(f"deltas={deltas!r} must be numbers of layers, counted from 0")
    return Method(
        arrange=Raster(1, page),
        score=Relayed(PageMass(), deltas),
        select=Outside(RecentTopK(pages, recent), deltas, first),
        compute=Attend(remainder=Drop(), per_token=True),
        schedule=Schedule(phase="decode"),
    )


def place(attention: Sequence[Tensor], count=3, first=2, apart=2) -> tuple[int, ...]:
    """Return the layers whose attention differs most from that of the layer before.

    attention: for each layer the mean attention over keys [S] of some text. The distance is
    1 - cosine; layers below `first`, which are dense, are not taken, nor two nearer than `apart`.
    """
    change = {
        n: 1 - F.cosine_similarity(attention[n - 1], attention[n], dim=0).item()
        for n in range(max(first, 1), len(attention))
    }
    found: list[int] = []
    for n in sorted(change, key=lambda n: -change[n]):
        if len(found) < count and all(abs(n - m) >= apart for m in found):
            found.append(n)
    return tuple(sorted(found))
