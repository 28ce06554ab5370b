"""Pack a dense block choice into lists: kv_count [B, H, M], kv_index [B, H, M, C], ids ascending,
packed left.

The form of FlashAttention-4 and FlexAttention, used by every method. On the device, without a sync.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.pool import pick


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
        raise ValueError(
            "block_mask must be bool or int8 [B, H, M, N], "
            f"got {block_mask.dtype} {list(block_mask.shape)}"
        )
    capacity = n if capacity is None else capacity
    if not 0 <= capacity <= n:
        raise ValueError(f"capacity must lie in [0, {n}], got {capacity}")
    if pick(block_mask, impl) == "triton":
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
