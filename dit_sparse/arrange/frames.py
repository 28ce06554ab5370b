"""The two orders of a video, frame by frame or patch by patch, chosen for each head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit_sparse.constants import constant, golden, made_once
from dit_sparse.core import QKV, Blocks, Context, Grid, Layout, Score, Select
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.losses import masked_losses, pack_keys
from dit_sparse.parameters import check_count


@dataclass(frozen=True)
class Frames:
    """Equal blocks of frame-major tokens, f * P + p; token-major, p * F + f, in heads of mode M.

    block: tokens per block. modes: (ctx, heads) -> one letter per head; None leaves every head
    frame-major. Text stands behind the video. Used by Sparse-vDiT.
    """

    block: int = 64
    modes: Callable[[Context, int], str] | None = None

    def __post_init__(self) -> None:
        check_count("block", self.block)

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        grid, device = _grid(ctx), str(x.q.device)
        row = self.modes(ctx, x.q.shape[1]) if self.modes else ""
        if "M" not in row or _alike(grid):
            blocks = _orders(grid, self.block, device)[0]
        elif set(row) == {"M"}:
            blocks = _orders(grid, self.block, device)[1]
        else:
            blocks = _fixed(grid, self.block, device, row)
        return Layout(blocks, blocks)


@dataclass(frozen=True)
class SampledFrames:
    """Frame-major or token-major, whichever loses less on a sample of queries, per head and call.

    score, select: stages that depend on the layout alone; what they keep is tried in both orders.
    block: tokens per block. rows: sampled video queries, one from each of so many equal stretches
    of the sequence, at a place that moves with the step. The loss is the mean squared difference
    to the full output of these queries; equal losses stay frame-major. Used by SVG.
    """

    score: Score
    select: Select
    block: int = 64
    rows: int = 64

    def __post_init__(self) -> None:
        check_count("block", self.block)
        check_count("rows", self.rows)

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        grid, device = _grid(ctx), str(x.q.device)
        blocks = _orders(grid, self.block, device)[0]
        if not _alike(grid):
            losses = self.losses(x, ctx)
            blocks = _mixed(grid, self.block, device, losses[1] < losses[0])
        return Layout(blocks, blocks)

    def losses(self, x: QKV, ctx: Context) -> Tensor:
        """Return the loss of both orders on the sampled queries, [2, B, H] float32 or wider."""
        rows, seen = _sample(self, _grid(ctx), ctx.step, str(x.q.device))
        return masked_losses(*x, rows, seen, scale=ctx.scale, impl=ctx.impl)


def sampled_rows(tokens: int, count: int, step: int, device: torch.device | str) -> Tensor:
    """Return one position in each of `count` equal stretches of [0, tokens), [count] int64."""
    count = min(count, tokens)
    shift = int(golden(step, 0.5) * tokens)
    return (torch.arange(count, device=device) * tokens + shift) // count


def _grid(ctx: Context) -> Grid:
    if ctx.causal:
        raise ArgumentError(
            "causal=True does not go with token-major heads, which mix all frames; use a causal "
            "method, e.g. 'sla'"
        )
    if ctx.grid is None:
        raise ArgumentError(
            "grid=None: frame-major and token-major orders need to know the frames, "
            "e.g. grid=Grid(21, 30, 52)"
        )
    return ctx.grid


def _alike(grid: Grid) -> bool:
    """Tell whether both orders are the same: one frame, or frames of one token."""
    return grid.frames == 1 or grid.height * grid.width == 1


@made_once(16)
def _orders(grid: Grid, block: int, device: str) -> tuple[Blocks, Blocks]:
    """Return the frame-major and the token-major blocks of a grid, built once."""
    turned = torch.arange(grid.video, device=device).view(grid.frames, -1).T.flatten()
    frame = Blocks.with_text(grid, block, device=device)
    return frame, Blocks.with_text(grid, block, turned, device=device)


# a model samples the same for all layers of a step
@made_once(16)
def _sample(stage: SampledFrames, grid: Grid, step: int, device: str) -> tuple[Tensor, Tensor]:
    """Return the sampled tokens [R] int64 and the bits of what they see in both orders, [2, R, W].

    What is kept is the same for every head and on both axes: one head of no features tells it.
    """
    blocks = _orders(grid, stage.block, device)[0]
    layout, ctx = Layout(blocks, blocks), Context(grid=grid)
    x = QKV(*3 * [torch.zeros(1, 1, grid.tokens, 1, device=device)])
    keep = stage.select(stage.score(x, layout, ctx), layout, ctx)[0, 0] > 0
    # the block of the last tokens may be the text's: all is seen there
    keep = torch.nn.functional.pad(keep, (0, 1, 0, 1), value=True)
    rows = sampled_rows(grid.video, stage.rows, step, device)
    ends = (grid.text, 0) if grid.text_first else (0, grid.text)
    seen = []
    for place in _places(grid, device):
        block = place // stage.block
        video = keep[block[rows]][:, block]
        seen.append(pack_keys(torch.nn.functional.pad(video, ends, value=True)))
    return rows + ends[0], torch.stack(seen)


@made_once(16)
def _places(grid: Grid, device: str) -> Tensor:
    """Return the position of every video token in both orders, [2, video] int64."""
    place = torch.arange(grid.video, device=device)
    return torch.stack([place, place.view(-1, grid.frames).T.flatten()])


@made_once(64)
def _fixed(grid: Grid, block: int, device: str, row: str) -> Blocks:
    """Return blocks whose order is token-major in heads of mode M, built once per table row."""
    turned = constant(tuple(mode == "M" for mode in row), torch.bool, device)
    return _mixed(grid, block, device, turned[None])


@made_once(16)
def _given(tokens: int, device: str) -> Tensor:
    """Return the order that changes nothing, [tokens] int64."""
    return torch.arange(tokens, device=device)


def _mixed(grid: Grid, block: int, device: str, turned: Tensor) -> Blocks:
    """Return blocks whose order is token-major where turned [B|1, H]; the cut is the same."""
    both, given = _orders(grid, block, device), _given(grid.tokens, device)
    frame, token = (given if blocks.order is None else blocks.order for blocks in both)
    return replace(both[0], order=torch.where(turned[..., None], token, frame))
