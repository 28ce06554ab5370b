"""MInference 1.0 (arXiv 2407.02490).

    1. blocks of 64 queries, single keys                       -> arrange
    2. per head one of three shapes:
       V rank of key columns and of slashes (distances) by
         the softmax mass of the last 64 queries
       A place and distance of a key
       B rank of key blocks by mean q . mean k                 -> score
    3. keep the best columns and slashes, the windows, or the
       best blocks, as many as the head's shape says           -> select
    4. exact attention on the kept keys, blocks and gathered
       columns in one softmax, drop the rest                   -> compute

A slash of distance d covers, for the queries before position e, the 64 keys
before e - d. The first 30 columns and the distances below 100 come first.

heads: for each layer one shape per head, "V columns slashes", "A first
local" or "B blocks"; `search` finds them for a layer. Without, every head
is "V columns slashes", the shape of all heads in the released plans.

Differs from the paper:
- the shape of a head is the one of least output error on an example, as in
  the paper; the released script keeps the most softmax mass instead.
- a window "A" is that of a block's first query; the paper's, and the code's
  masks, are per query.
- a column inside a slash counts once, and columns among a block's own keys
  are those anyway, as in the code.
- a list is not cut when lines overlap: what is kept follows the ranks.
- equal masses rank the earlier line first.
- queries of a chunk take their lines from the chunk's last 64.
- dense in decoding, as in the code.
"""

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import dense
from dit_sparse.compute.stripes import Stripes
from dit_sparse.core import QKV, Context, Method
from dit_sparse.parameters import check_count
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.lines import Lines
from dit_sparse.select.forced import AtLeast

# what the released search tries, at about the price of 1,024 first and 4,096 local keys
CANDIDATES = ("A 1024 4096", "V 30 800", "V 100 750", "V 500 700", "V 3500 100", "B 100")


@register("minference", arxiv="2407.02490", code="microsoft/MInference")
def minference(
    columns=1000, slashes=6096, heads=(), last=64, block=64, sink=30, local=100, dense_layers=0
):
    for name, value in (("columns", columns), ("slashes", slashes), ("last", last)):
        check_count(name, value)
    for name, value in (("block", block), ("sink", sink), ("local", local)):
        check_count(name, value)
    return Method(
        arrange=Raster(block, 1),
        score=Lines(f"V {columns} {slashes}", heads, last, sink, local),
        select=AtLeast(-1.0),
        compute=Stripes(block),
        schedule=Schedule(0, dense_layers, "prefill"),
    )


def search(x: QKV, candidates=CANDIDATES, **params) -> tuple[str, ...]:
    """Return for each head the shape of least output error, from one layer's q, k, v of a text.

    candidates: shapes of about equal price. params: of the method.
    """
    ctx = Context(causal=True)
    truth, errors = dense(x, ctx), []
    for shape in candidates:
        method = minference(heads=((shape,) * x.q.shape[1],), **params)
        errors.append([(a - b).norm().item() for a, b in _heads(method(x, ctx), truth)])
    return tuple(
        candidates[min(range(len(candidates)), key=lambda n: errors[n][head])]
        for head in range(x.q.shape[1])
    )


def _heads(out, truth):
    """Return pairs of the outputs of each head."""
    return zip(out.unbind(1), truth.unbind(1), strict=True)
