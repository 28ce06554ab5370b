"""Draw the same share of tokens from every block, one from each of equal strata.

    at_i = floor((i + u_i) n / c),    u_i = frac(i walk + shift),    c = ceil(n s / size)

A block of n tokens has c of s samples; the others are repeats. Which token of its stratum is taken
follows a quasi-random sequence over strata (walk) and calls (shift). Used by PSA's importance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Cut, as_cut, block_bounds, check_cut
from dit_sparse.kernels.pool import pick

# fixed point: exact on every device, for not each has float64, up to 130,000 tokens a block
BITS = 31
ONE = 1 << BITS


def sample_strata(
    x: Tensor, blocks: Cut | int, s: int, *, walk: float, shift: float, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return s tokens per block [B, H, N * s, D], and how many are real, int32 [B or 1, H or 1, N].

    x: [B, H, S, D]; blocks: block size or Cut, N blocks; walk, shift: in [0, 1).
    A block's real samples come first and rise. No gradient; one pass over what is taken.

    >>> sample_strata(torch.arange(10.0).view(1, 1, 10, 1), 8, 2, walk=0.5, shift=0.25)[1].tolist()
    [[[2, 1]]]
    """
    cut = as_cut(blocks)
    if x.dim() != 4 or not x.is_floating_point():
        got = f"{x.dtype} {list(x.shape)}"
        raise ValueError(f"x must be a floating 4-D tensor [B, H, S, D], got {got}")
    check_cut("blocks", cut, x.shape[0], (x.shape[1],))
    for name, value, ok in (
        ("s must be a count in [1, size]", s, 1 <= s <= cut.size),
        ("walk must lie in [0, 1)", walk, 0 <= walk < 1),
        ("shift must lie in [0, 1)", shift, 0 <= shift < 1),
    ):
        if not ok:
            raise ValueError(f"{name}, got {value}")
    x, walk, shift = x.detach(), int(walk * ONE), int(shift * ONE)
    if pick(x, impl, limit=256) == "triton":
        from dit_sparse.kernels import importance_triton

        return importance_triton.sample_strata(x, cut, s, walk, shift)
    at, count = places(cut, x.shape[2], s, walk, shift, x.device)
    return take(x, at), count


def places(
    cut: Cut, tokens: int, s: int, walk: int, shift: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return positions, int64 [B or 1, H or 1, N * s], and counts; walk and shift in 1 / ONE."""
    start, end = (t[..., None] for t in block_bounds(cut, tokens, device))
    n = end - start
    count = ((n * s + cut.size - 1) // cut.size).clamp_(max=s)
    stratum = torch.arange(s, device=device)
    inside = (stratum * walk + shift) % ONE
    at = (stratum * ONE + inside) * n // count.clamp(min=1) // ONE
    # past the count, and in an empty block, any position will do
    at = torch.minimum(at, (n - 1).clamp(min=0)) + start
    return at.clamp_(max=tokens - 1).flatten(-2), count[..., 0].int()


def take(x: Tensor, at: Tensor) -> Tensor:
    """Return tokens [B, H, n, D] of x [B, H, S, D] at positions [B or 1, H or 1, n]."""
    if at.shape[:2] == (1, 1):
        return x.index_select(2, at[0, 0])
    return x.gather(2, at[..., None].expand(*x.shape[:2], -1, x.shape[3]))
