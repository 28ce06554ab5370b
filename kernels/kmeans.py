"""K-means of tokens, per batch element and head: Lloyd's iterations without a wait for the device.

    a(n) = argmin_c |c|^2 - 2 x_n . c        c = mean of { x_n : a(n) = c }

|x_n|^2 is the same for every c. An empty cluster keeps its old centroid and has size 0. The update
sorts the labels and pools each run of equal ones: no atomic addition of floats, so that one input
has one result; the last sort is the order returned. Users: svg2, svg_ear. Distances and means in
float32, in float64 for float64; the centroids that tokens are compared with are rounded to x's
dtype, their norms taken after that. The Triton form, up to head dim 256, compares 17 bits of
|x_n - c|^2 + |x_n|^2 / 128, of which those that agree are equal: the first centroid is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.pool import pick, pool_blocks

# distances that the torch form holds at once
_SCRATCH = 1 << 22


def _check(x: Tensor, centroids: Tensor) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x must be floating [B, H, S, D], got {x.dtype} {list(x.shape)}")
    batch, heads, _, dim = x.shape
    shape = list(centroids.shape)
    if centroids.dim() != 4 or shape[2] < 1 or shape != [batch, heads, shape[2], dim]:
        raise ValueError(f"centroids must be [{batch}, {heads}, C, {dim}] with C >= 1, got {shape}")


def assign(x: Tensor, centroids: Tensor, *, impl: str = "auto") -> Tensor:
    """Return the nearest centroid of every token, int64 [B, H, S]; among equals the first.

    x: [B, H, S, D]; centroids: [B, H, C, D] floating

    >>> x = torch.tensor([[[[0.0], [2.0], [9.0]]]])
    >>> assign(x, torch.tensor([[[[1.0], [8.0]]]])).tolist()
    [[[0, 0, 1]]]
    """
    _check(x, centroids)
    wide = torch.promote_types(x.dtype, torch.float32)
    if pick(x, impl, limit=256) == "triton":
        from dit_sparse.kernels import centroid_passes

        return centroid_passes.assign(x, centroids).long()
    near = centroids.to(x.dtype)
    norm = near.to(wide).square().sum(-1)
    step = max(1, _SCRATCH // norm.numel())
    near = near.to(wide).mT * -2
    parts = [
        (chunk.to(wide) @ near).add_(norm[..., None, :]).argmin(-1) for chunk in x.split(step, 2)
    ]
    return torch.cat(parts, -1)


def sort_labels(labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Return the tokens sorted by label, int64 [B, H, S], in their old order inside a cluster, and
    where each cluster starts, int32 [B, H, C + 1].

    >>> [t.tolist() for t in sort_labels(torch.tensor([[[2, 0, 2]]]), 3)]
    [[[[1, 0, 2]]], [[[0, 1, 1, 3]]]]
    """
    batch, heads, tokens = labels.shape
    # one sort of all heads at once: a GPU sorts row after row
    head = torch.arange(batch * heads, device=labels.device, dtype=torch.int32)[:, None]
    key = labels.flatten(0, 1).int() + head * clusters
    key, index = key.flatten().sort(stable=True)
    order = index.view(batch * heads, tokens) - head * tokens
    starts = torch.arange(clusters + 1, device=key.device, dtype=torch.int32) + head * clusters
    offsets = torch.searchsorted(key.view(batch * heads, tokens), starts, out_int32=True)
    return order.unflatten(0, (batch, heads)), offsets.unflatten(0, (batch, heads))


@torch.no_grad()
def kmeans(
    pairs: Sequence[tuple[Tensor, Tensor]], iterations: int, *, impl: str = "auto"
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (centroids, order, offsets) of each pair after `iterations` of assignment and update.

    pairs: (x [B, H, S, D], centroids [B, H, C, D] where to begin) of each tensor to cluster; they
        share a dtype, a device and D, nothing else
    returns: centroids [B, H, C, D] float32 or wider, each the mean of exactly the tokens of its
        cluster; order [B, H, S] int64, the tokens sorted by cluster; offsets [B, H, C + 1] int32

    >>> x = torch.tensor([[[[0.0], [9.0], [2.0]]]])
    >>> [t.tolist() for t in kmeans([(x, x[:, :, :2])], 1)[0]]
    [[[[[1.0], [9.0]]]], [[[0, 2, 1]]], [[[0, 2, 3]]]]
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    for x, centroids in pairs:
        _check(x, centroids)
    kinds = {(x.dtype, x.shape[3]) for x, _ in pairs}
    if len(kinds) != 1:
        got = ", ".join(f"{dtype} with D={dim}" for dtype, dim in kinds) or "no pair"
        raise ValueError(f"pairs must share one dtype and head dim, got {got}")
    if pick(pairs[0][0], impl, *(x for x, _ in pairs[1:]), limit=256) == "triton":
        from dit_sparse.kernels import centroid_passes

        return centroid_passes.kmeans(pairs, iterations)
    return [_kmeans(x, centroids, iterations) for x, centroids in pairs]


def _kmeans(x: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `kmeans` of one pair in torch."""
    wide = torch.promote_types(x.dtype, torch.float32)
    centroids = centroids.to(wide)
    for _ in range(iterations):
        order, offsets = sort_labels(assign(x, centroids, impl="torch"), centroids.shape[2])
        mean = pool_blocks(x, Cut(x.shape[2], offsets), order, dtype=wide, impl="torch")
        centroids = mean.where(offsets.diff(dim=-1)[..., None] > 0, centroids)
    return centroids, order, offsets
