"""BLASST, skip-softmax (arXiv 2512.12087).

    1. blocks of 128 queries and 64 keys, in order             -> arrange
    2. per block the largest logit of each query, less its
       largest so far; the largest of all queries              -> score
    3. skip a block where that is below ln(lambda),
       lambda = factor / number of keys, at most 1             -> select
    4. exact attention on the others                           -> compute

With several queries 2 and 3 happen inside 4, as in the paper: one kernel
walks the keys and leaves out the exponentials, the values and the second
product of a block. The plan then holds lambda instead of the choice, and
the density is what the kernel counted. With impl="reference", with
gradients and in decoding the choice stands before the kernel.

factor = alpha exp(beta * sparsity), one for the prefill and one for decoding;
`fit` finds alpha and beta from examples. Defaults: what the authors found
for half of the blocks of Qwen3-30B-A3B.

Differs from the paper:
- decoding computes the kept products once more; there is no gain in
  speed. The paper's kernel loads the values of kept blocks alone.
- the own block is always kept. lambda is at most 1, so that up to `factor`
  keys a block must hold a query's largest logit so far; the paper's rule
  would skip every block there, and its calibration begins at 4,096 keys.
- the tiles of the paper are its kernels', 64 to 128 wide; here from 16.
- packed heads of one key head agree in decoding; a few drafted tokens
  choose head by head.
- the fit is a least-squares line, as the calibration code's; the paper's
  samples are not part of it.
"""

from collections.abc import Iterable

import torch

from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.skipping import AttendSkipping
from dit_sparse.core import QKV, Context, Method
from dit_sparse.errors import ArgumentError
from dit_sparse.registry import register
from dit_sparse.schedule import Schedule
from dit_sparse.score.running import BelowPeak
from dit_sparse.select.past import WithinFactor

# of the kernel that skips
TILES = (16, 32, 64, 128)


@register("blasst", arxiv="2512.12087", code="NVIDIA/TensorRT-LLM")
def blasst(factor=85.97, decode_factor=55.48, block=(128, 64), dense_layers=0):
    for name, value in (("factor", factor), ("decode_factor", decode_factor)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ArgumentError(f"{name}={value!r} must be a number of at least 0 (0: dense)")
    two = isinstance(block, tuple | list) and len(block) == 2
    if not two or not all(type(n) is int and n in TILES for n in block):
        raise ArgumentError(
            f"block={block!r} must be two sizes (query, key) of {TILES}, e.g. (128, 64)"
        )
    return Method(
        arrange=Raster(*block),
        score=BelowPeak(),
        select=WithinFactor(factor, decode_factor),
        compute=AttendSkipping(),
        schedule=Schedule(0, dense_layers, "both"),
    )


def sparsity(x: QKV, factors: Iterable[float], block=(128, 64)) -> list[float]:
    """Return the share of the visible blocks that each factor skips, from one dense pass."""
    ctx = Context(causal=True)
    layout = Raster(*block)(x, ctx)
    score = BelowPeak()(x, layout, ctx)
    seen = (score > float("-inf")).sum().item()
    counts = ((WithinFactor(f, f)(score, layout, ctx) == 1).sum().item() for f in factors)
    return [1 - count / seen for count in counts]


def fit(points: Iterable[tuple[float, float]], least=0.05, most=0.95) -> tuple[float, float]:
    """Return (alpha, beta) of factor = alpha exp(beta * sparsity) from (factor, sparsity) pairs.

    Pairs whose sparsity is not in [least, most] say nothing and are left out.
    """
    used = [(f, s) for f, s in points if least <= s <= most and f > 0]
    if len({s for _, s in used}) < 2:
        raise ArgumentError(
            f"points: {len(used)} of them have a sparsity in [{least}, {most}]; two that differ "
            "are needed"
        )
    logs, shares = torch.tensor(used, dtype=torch.float64).unbind(1)
    logs, centred = logs.log(), shares - shares.mean()
    beta = (centred @ logs / centred.square().sum()).item()
    return (logs.mean() - beta * shares.mean()).exp().item(), beta
