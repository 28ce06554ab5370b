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
    if pick(score[..., :1], impl) == "triton" and score.dtype == torch.float32 and n <= 16384:
        from dit_sparse.kernels import passes

        return passes.top_blocks(score, k)
    best = score.topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(score, dtype=torch.int8).scatter_(-1, best, 1)


def pack_lists(
    block_mask: Tensor, capacity: int | None = None, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return (kv_count, kv_index), int32, of a block choice.

    block_mask: [B, H, M, N] bool or int8, nonzero = kept; capacity: C <= N, default N; a row that
        keeps more
    loses its highest ids. Entries past the count are 0.

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
    # one element: the kernel has no limit on the axis that `pick` takes for the head dim
    if pick(block_mask[..., :1], impl) == "triton":
        from dit_sparse.kernels import passes

        return passes.pack_lists(block_mask, capacity)
    kept = block_mask != 0
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
