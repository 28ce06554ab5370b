"""Block top-k decoding of Kinetics (arXiv 2506.05333).

    1. pages of 16 keys; every new token by itself             -> arrange
    2. score: mean over the heads of a group of
       q . mean(k of a page)                                   -> score
    3. per group keep the page of the token itself and the
       best `pages` others                                     -> select
    4. exact attention on the kept pages, drop the rest        -> compute

Differs from the paper:
- the means of full pages stay beside the host's cache, in the keys' number
  format, while it only grows (integrations/transformers_cache.py); after a
  crop, a reordering of beams or in a compiled model they are taken anew
  from all keys.
- pages begin at the first token of a sequence, so that padding on the
  left takes no part in them.
- the prefill is dense, as in the paper. Drafted tokens, a few at a time,
  choose their pages one by one.
- the cost model of the paper is not part of a method.
"""

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.core import Method
from dit_sparse.parameters import check_count
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.pages import PageMean
from dit_sparse.select.forced import ForcedTopK


@register(
    "block_topk",
    arxiv="2506.05333",
    code="Infini-AI-Lab/Kinetics",
    xfail={"grouped_heads": "the heads of a group share one choice; repeated, each has its own"},
)
def block_topk(pages=64, page=16, dense_layers=0):
    check_count("pages", pages)
    check_count("page", page)
    return Method(
        arrange=Raster(1, page),
        score=PageMean(),
        select=ForcedTopK(pages, others=True),
        compute=Attend(remainder=Drop(), per_token=True),
        schedule=Schedule(0, dense_layers, "decode"),
    )
