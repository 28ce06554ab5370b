"""Choose the best blocks of each row; pack a dense choice into lists, kv_count [B, H, M] and
kv_index [B, H, M, C], ids ascending, packed left; and unpack it.

The form of FlashAttention-4 and FlexAttention, used by every method. On the device, without a sync.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.pool import pick


def top_blocks(score: Tensor, k: int, *, impl: str = "auto") -> Tensor:
    """Return int8 [B, H, M, N], 1 at the k largest scores of each row and 0 elsewhere.

    score: [B, H, M, N] floating; k in [1, N]. Among equal scores any may be taken.

    >>> top_blocks(torch.tensor([[[[0.5, 2.0, 1.0]]]]), 2).tolist()
    [[[[0, 1, 1]]]]
    """
    n = score.shape[-1]
    if score.dim() != 4 or not score.is_floating_point() or not 1 <= k <= n:
        got = f"{score.dtype} {list(score.shape)}, k={k}"
        raise ValueError(f"score must be floating [B, H, M, N] with k in [1, N], got {got}")
    if _in_registers(score, impl):
        from dit_sparse.kernels import _lists

        return _lists.top_lists(score, k, lists=False)[0]
    best = score.topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(score, dtype=torch.int8).scatter_(-1, best, 1)


def top_lists(score: Tensor, k: int, *, impl: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """Return `top_blocks` and its lists kv_count, kv_index [B, H, M, k]; one launch in Triton.

    >>> [x.tolist() for x in top_lists(torch.tensor([[[[0.5, 2.0, 1.0]]]]), 2)[1:]]
    [[[[2]]], [[[[1, 2]]]]]
    """
    if score.dim() == 4 and 1 <= k <= score.shape[-1] and _in_registers(score, impl):
        from dit_sparse.kernels import _lists

        return _lists.top_lists(score, k)
    level = top_blocks(score, k, impl=impl)
    return level, *pack_lists(level, k, impl=impl)


def edge_lists(score: Tensor, edge: Tensor, *, impl: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """Return the choice of all scores not below an edge, and of the best of each row, int8 [B, H,
    M, N], and its lists kv_count, kv_index [B, H, M, N]; one launch in Triton.

    score: [B, H, M, N] floating; edge: [B, H] of the same dtype. NaN, on either side, is kept.

    >>> score = torch.tensor([[[[0.5, 2.0, 1.0], [0.0, 0.1, 0.2]]]])
    >>> edge_lists(score, torch.ones(1, 1))[0].tolist()
    [[[[0, 1, 1], [0, 0, 1]]]]
    """
    if _in_registers(score, impl):
        from dit_sparse.kernels import _lists

        return _lists.edge_lists(score, edge)
    # "not below" instead of "at least": a row of NaN keeps its blocks, so that the NaN shows
    worse = (score < edge[..., None, None]) & (score < score.amax(-1, keepdim=True))
    level = worse.logical_not_().view(torch.int8)
    return level, *pack_lists(level, impl=impl)


def _in_registers(score: Tensor, impl: str) -> bool:
    """Return whether a row of scores is for Triton: one program holds it whole."""
    fits = score.dtype == torch.float32 and score.shape[-1] <= 16384
    # one element: the kernels have no limit on the axis that `pick` takes for the head dim
    return pick(score[..., :1], impl) == "triton" and fits


def pack_lists(
    block_mask: Tensor,
    capacity: int | None = None,
    *,
    level: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return (kv_count, kv_index), int32, of a block choice.

    block_mask: [B, H, M, N] bool or int8, kept where it is nonzero, or equal to `level`; capacity:
    C <= N, default N; a row that keeps more loses its highest ids. Entries past the count are 0.

    >>> pack_lists(torch.tensor([[[[True, False, True]]]]))[1].tolist()
    [[[[0, 2, 0]]]]
    """
    n = block_mask.shape[-1]
    if block_mask.dtype not in (torch.bool, torch.int8) or block_mask.dim() != 4:
        got = f"{block_mask.dtype} {list(block_mask.shape)}"
        raise ValueError(f"block_mask must be bool or int8 [B, H, M, N], got {got}")
    capacity = n if capacity is None else capacity
    if not 0 <= capacity <= n:
        raise ValueError(f"capacity must lie in [0, {n}], got {capacity}")
    if pick(block_mask[..., :1], impl) == "triton":
        from dit_sparse.kernels import _lists

        return _lists.pack_lists(block_mask, capacity, level)
    kept = block_mask != 0 if level is None else block_mask == level
    place = kept.cumsum(-1) - 1
    # dropped and overflowing entries land in one spare slot
    place = place.where(kept & (place < capacity), capacity)
    ids = torch.arange(n, device=kept.device, dtype=torch.int32).expand(kept.shape)
    index = torch.zeros(
        *kept.shape[:-1], capacity + 1, dtype=torch.int32, device=kept.device
    ).scatter(-1, place, ids)
    return kept.sum(-1).clamp(max=capacity).int(), index[..., :capacity].contiguous()


def dense_mask(kv_count: Tensor, kv_index: Tensor, n: int) -> Tensor:
    """Return the choice that lists stand for, bool [B, H, M, n]; entries past a count are ignored.

    >>> dense_mask(torch.tensor([[[1]]]), torch.tensor([[[[1, 0, 0]]]]), 3).tolist()
    [[[[False, True, False]]]]
    """
    listed = torch.arange(kv_index.shape[-1], device=kv_index.device) < kv_count[..., None]
    mask = torch.zeros(*kv_count.shape, n + 1, dtype=torch.bool, device=kv_index.device)
    return mask.scatter_(-1, kv_index.long().where(listed, n), True)[..., :n]
