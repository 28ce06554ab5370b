"""Clusters of similar tokens: each block is a k-means cluster of its head."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from dit_sparse.constants import golden, made_once
from dit_sparse.core import QKV, Blocks, Context, Grid, Known, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.kmeans import kmeans

# clusters per square root of the token count, and the fewest tokens a cluster shall have on average
_RULE = {"q_clusters": (1.1, 64), "k_clusters": (3.6, 32)}


@dataclass(frozen=True)
class Clusters:
    """K-means (Euclidean) of the queries and, apart from them, of the keys of every head.

    Video tokens only; a block is a cluster, values follow their keys, text stands behind.
    q_clusters, k_clusters: 0 chooses 1.1 (queries) and 3.6 (keys) times the root of the number of
    video tokens, at an average of 64 and 32 tokens or more: 302 and 990 at 75,600 tokens, 36 and 72
    at 2,304. cold_iters: iterations from tokens spread evenly over the sequence; warm_iters: from
    the centroids of the step before, kept in `ctx.state`; both sides begin anew when one has
    another shape. The centroids of this call are left in `ctx.cache` for the stages behind. Used by
    SVG2, SVG-EAR.
    """

    q_clusters: int = 0
    k_clusters: int = 0
    cold_iters: int = 50
    warm_iters: int = 2

    def __post_init__(self) -> None:
        for name, least in (
            ("q_clusters", 0),
            ("k_clusters", 0),
            ("cold_iters", 1),
            ("warm_iters", 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                zero = " (0: chosen from the number of tokens)" if least == 0 else ""
                raise ArgumentError(
                    f"{name}={value!r} must be an integer of at least {least}{zero}"
                )

    def check(self, known: Known) -> None:
        """Raise when there are more clusters than video tokens."""
        if known.grid is not None:
            for name in ("q_clusters", "k_clusters"):
                cluster_count(name, getattr(self, name), known.grid.video)

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        if ctx.causal:
            raise ArgumentError(
                "causal attention cannot be clustered: a cluster holds tokens of all times, so no "
                "block of it is wholly past or future; use a causal method, e.g. 'sla'"
            )
        grids, video = {}, {}
        # keys first: theirs are the longer programs of the launches that both sides share
        for name, t in (("k", x.k), ("q", x.q)):
            grid = grids[name] = ctx.grid or Grid(1, 1, t.shape[2])
            first = grid.text if grid.text_first else 0
            video[name] = t.detach()[:, :, first : first + grid.video]
        starts, iterations = self._starts(video, ctx)
        pairs = [(t, starts[name]) for name, t in video.items()]
        blocks = {}
        for name, found in zip(video, kmeans(pairs, iterations, impl=ctx.impl), strict=True):
            centroids, order, offsets = found
            ctx.cache[f"{name} centroids"] = centroids
            # assignment rounds them to this anyway
            ctx.state[self, name] = centroids.to(video[name].dtype)
            blocks[name] = _blocks(grids[name], order, offsets)
        return Layout(blocks["q"], blocks["k"])

    def _starts(self, video: dict[str, Tensor], ctx: Context) -> tuple[dict[str, Tensor], int]:
        """Return where the centroids of each side [B, H, S, D] begin, and how many iterations."""
        counts = {
            name: cluster_count(f"{name}_clusters", getattr(self, f"{name}_clusters"), x.shape[2])
            for name, x in video.items()
        }
        last: dict[str, Tensor] = {
            name: ctx.state[self, name] for name in video if (self, name) in ctx.state
        }
        if len(last) == len(video) and all(
            last[name].shape == (*x.shape[:2], counts[name], x.shape[3])
            for name, x in video.items()
        ):
            return last, self.warm_iters
        return {
            name: x[:, :, _spread(x.shape[2], counts[name], str(x.device))]
            for name, x in video.items()
        }, self.cold_iters


def cluster_count(name: str, asked: int, tokens: int) -> int:
    """Return how many clusters `tokens` video tokens get; asked=0 takes the rule of `Clusters`."""
    if asked > tokens:
        raise ArgumentError(
            f"{name}={asked} is above the {tokens} video tokens there are to cluster; use at most "
            f"{tokens}, or 0 to choose it from their number"
        )
    share, least = _RULE[name]
    return asked or max(1, round(min(share * sqrt(tokens), tokens / least)))


def _blocks(grid: Grid, order: Tensor, offsets: Tensor) -> Blocks:
    """Return the clusters of the video, order [B, H, video] and offsets [B, H, C + 1], as blocks,
    with the text behind them."""
    # a cluster may hold all tokens: nothing smaller bounds its size without asking the device
    if grid.text:
        return Blocks.with_text(grid, grid.video, order, offsets[..., 1:], device=order.device)
    return Blocks(grid.video, grid.video, offsets.shape[-1] - 1, order, offsets)


@made_once(32)
def _spread(tokens: int, clusters: int, device: str) -> Tensor:
    """Return `clusters` distinct positions below `tokens`: one in each of as many equal parts.

    Where in its part moves by the golden ratio: a fixed place would fall on one column of the
    picture whenever the width divides the part.
    """
    part = [i * tokens // clusters for i in range(clusters + 1)]
    inside = [int(golden(i) * (part[i + 1] - part[i])) for i in range(clusters)]
    return torch.tensor([a + b for a, b in zip(part, inside, strict=False)], device=device)
