"""The two orders of a video, frame by frame or patch by patch, chosen for each head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from dit_sparse.constants import constant, golden
from dit_sparse.core import QKV, Blocks, Context, Grid, Layout, Score, Select
from dit_sparse.errors import ArgumentError
from dit_sparse.parameters import check_count

# bytes of logits and of float32 keys and values at a time: heads are sampled in groups below it
SCRATCH = 512 << 20
PIECE = 1024  # keys of one product


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
            turned = constant(tuple(mode == "M" for mode in row), torch.bool, device)
            blocks = _mixed(grid, self.block, device, turned[None])
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
            with torch.no_grad():
                losses = self.losses(x, ctx)
            blocks = _mixed(grid, self.block, device, losses[1] < losses[0])
        return Layout(blocks, blocks)

    def losses(self, x: QKV, ctx: Context) -> Tensor:
        """Return the loss of both orders on the sampled queries, [2, B, H] float32 or wider."""
        grid, device = _grid(ctx), str(x.q.device)
        blocks = _orders(grid, self.block, device)[0]
        # what is kept is the same for every head and on both axes: one head tells it
        layout, one = Layout(blocks, blocks), QKV(*(t[:1, :1] for t in x))
        keep = self.select(self.score(one, layout, ctx), layout, ctx)[0, 0] > 0
        rows = sampled_rows(grid.video, self.rows, ctx.step, x.q.device)
        ends = (grid.text, 0) if grid.text_first else (0, grid.text)
        seen = []
        for place in _places(grid, device):
            block = place // self.block
            video = keep[block[rows]][:, block]
            seen.append(torch.nn.functional.pad(video, ends, value=True))
        return _losses(x, rows + ends[0], torch.stack(seen), ctx.scale)


def sampled_rows(tokens: int, count: int, step: int, device: torch.device | str) -> Tensor:
    """Return one position in each of `count` equal stretches of [0, tokens), [count] int64."""
    count = min(count, tokens)
    shift = int(golden(step, 0.5) * tokens)
    return (torch.arange(count, device=device) * tokens + shift) // count


def _losses(x: QKV, rows: Tensor, seen: Tensor, scale: float | None) -> Tensor:
    """Return mean |masked - full output|^2 over rows [R] for each mask of seen [2, R, S]."""
    heads, tokens = x.k.shape[1:3]
    wide = torch.promote_types(x.q.dtype, torch.float32)
    factor = float(x.q.shape[-1] ** -0.5 if scale is None else scale)
    # few queries, many keys: only pieces of the key axis give a GPU enough independent products
    short = -tokens % PIECE
    pieces = (tokens + short) // PIECE
    # q: [B, Hkv, 1, G * R, D], the query heads of one key head side by side
    q = (x.q.index_select(2, rows).to(wide) * factor).unflatten(1, (heads, -1))
    group, q = q.shape[2], q.flatten(2, 3)[:, :, None]
    masks = torch.nn.functional.pad(torch.cat([torch.ones_like(seen[:1]), seen]), (0, short))
    # masks: [3, P, G * R, PIECE]
    masks = masks.unflatten(2, (pieces, PIECE)).transpose(1, 2).repeat(1, 1, group, 1)
    width = 3 * q.shape[3] + x.k.shape[-1] + x.v.shape[-1]
    step = max(1, SCRATCH // (len(q) * tokens * width * wide.itemsize))
    losses = []
    for first in range(0, heads, step):
        part = slice(first, first + step)
        k, v = (
            torch.nn.functional.pad(t[:, part].to(wide), (0, 0, 0, short)).unflatten(2, (-1, PIECE))
            for t in (x.k, x.v)
        )
        logits = q[:, part] @ k.mT
        full, *outs = (_softmax_product(logits.masked_fill(~m, float("-inf")), v) for m in masks)
        errors = (out.sub(full).square().unflatten(2, (group, -1)) for out in outs)
        losses.append(torch.stack([error.mean((-2, -1)) for error in errors]))
    return torch.cat(losses, 2).flatten(2)


def _softmax_product(logits: Tensor, v: Tensor) -> Tensor:
    """Return softmax(logits) @ v over an axis in pieces: [B, H, P, R, n], [B, H, P, n, D]."""
    p = (logits - logits.amax((2, 4), keepdim=True)).exp_()
    return (p @ v).sum(2) / p.sum((2, 4))[..., None]


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


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _orders(grid: Grid, block: int, device: str) -> tuple[Blocks, Blocks]:
    """Return the frame-major and the token-major blocks of a grid, built once."""
    turned = torch.arange(grid.video, device=device).view(grid.frames, -1).T.flatten()
    frame = Blocks.with_text(grid, block, device=device)
    return frame, Blocks.with_text(grid, block, turned, device=device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _places(grid: Grid, device: str) -> Tensor:
    """Return the position of every video token in both orders, [2, video] int64."""
    place = torch.arange(grid.video, device=device)
    return torch.stack([place, place.view(-1, grid.frames).T.flatten()])


def _mixed(grid: Grid, block: int, device: str, turned: Tensor) -> Blocks:
    """Return blocks whose order is token-major where turned [B|1, H]; the cut is the same."""
    both, given = _orders(grid, block, device), torch.arange(grid.tokens, device=device)
    frame, token = (given if blocks.order is None else blocks.order for blocks in both)
    return replace(both[0], order=torch.where(turned[..., None], token, frame))
