"""A space-filling curve: tokens that are near on the curve are near in the video."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.constants import made_once
from dit_sparse.core import QKV, Blocks, Context, Grid, Layout
from dit_sparse.parameters import check_count


@dataclass(frozen=True)
class Curve:
    """Blocks of `block` consecutive tokens of a generalised Hilbert curve, text behind the video.

    The curve fills the (frames, height, width) box of any size, odd sides and single frames too;
    it starts along the longest side (of equal ones width, then height, then frames), and each
    token is a face neighbour of the one before, save some diagonal steps where a side is odd.
    Without a grid the sequence is cut in raster blocks.
    Used by PSA, Rectified SpaAttn.
    """

    block: int = 128

    def __post_init__(self) -> None:
        check_count("block", self.block)

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        if ctx.grid is None:
            return Layout.uniform(x, self.block)
        blocks = _curved(ctx.grid, self.block, str(x.q.device))
        return Layout(blocks, blocks)


def hilbert_order(frames: int, height: int, width: int) -> list[int]:
    """Return the raster index of each token along the curve; a bijection.

    >>> hilbert_order(1, 2, 2)
    [0, 2, 3, 1]
    """
    # an axis is (step of the raster index, tokens along it); a box is a corner and three axes
    sides = [(1, width), (width, height), (width * height, frames)]
    sides.sort(key=lambda side: -side[1])
    path: list[int] = []
    _fill(path, 0, *sides)
    return path


Side = tuple[int, int]


def _fill(path: list[int], start: int, a: Side, b: Side, c: Side) -> None:
    """Append a walk through the box a x b x c that enters at `start` and leaves at the end of a.

    A long box is cut in two along a. Others are walked in three or five boxes: up along b (and
    c), along a at the far side, and back down, so that each box is entered next to the exit of
    the one before.
    """
    (da, na), (db, nb), (dc, nc) = a, b, c
    if (na > 1) + (nb > 1) + (nc > 1) <= 1:
        # a side of length 1 contributes its single position to the line
        step, count = max((a, b, c), key=lambda side: side[1])
        path.extend(range(start, start + step * count, step))
        return
    la, lb, lc = (_half(n) for n in (na, nb, nc))
    low_a, high_a = (da, la), (da, na - la)
    low_b, high_b = (db, lb), (db, nb - lb)
    low_c, high_c = (dc, lc), (dc, nc - lc)
    # the last token of a from the start
    end = start + da * (na - 1)
    if 2 * na > 3 * nb and 2 * na > 3 * nc:
        _fill(path, start, low_a, b, c)
        _fill(path, start + da * la, high_a, b, c)
    elif 3 * nb > 4 * nc:
        _fill(path, start, low_b, c, low_a)
        _fill(path, start + db * lb, a, high_b, c)
        _fill(path, end + db * (lb - 1), _back(low_b), c, _back(high_a))
    elif 3 * nc > 4 * nb:
        _fill(path, start, low_c, low_a, b)
        _fill(path, start + dc * lc, a, b, high_c)
        _fill(path, end + dc * (lc - 1), _back(low_c), _back(high_a), b)
    else:
        top = dc * (nc - 1)
        _fill(path, start, low_b, low_c, low_a)
        _fill(path, start + db * lb, c, low_a, high_b)
        _fill(path, start + db * (lb - 1) + top, a, _back(low_b), _back(high_c))
        _fill(path, end + db * lb + top, _back(c), _back(high_a), high_b)
        _fill(path, end + db * (lb - 1), _back(low_b), low_c, _back(high_a))


def _half(count: int) -> int:
    """Return about half of a side, even where it can be: a walk of even sides ends at a face."""
    half = count // 2
    return half + 1 if half % 2 and count > 2 else half


def _back(side: Side) -> Side:
    """Return the same side walked the other way."""
    return -side[0], side[1]


# a compiler takes the finished order as a constant instead of tracing 100,000 steps
@torch.compiler.assume_constant_result
@torch.inference_mode(False)
def _order(grid: Grid, device: str) -> Tensor:
    return torch.tensor(hilbert_order(*grid.sides)).to(device)


@made_once(16)
def _curved(grid: Grid, block: int, device: str) -> Blocks:
    """Return the blocks of a grid."""
    return Blocks.with_text(grid, block, _order(grid, device), device=device)
