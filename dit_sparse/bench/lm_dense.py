"""What text attention is set against: PyTorch's dense kernels, and FlexAttention over blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_sparse.bench.baselines import Call, _flex, _needs_cuda
from dit_sparse.core import QKV
from dit_sparse.kernels.lists import dense_mask, pack_lists

BLOCK = 128


def dense(others: bool = True) -> dict[str, Callable[[QKV], Call]]:
    """Return the dense baselines; others: with FlexAttention."""
    found = {
        "cudnn": partial(sdpa, SDPBackend.CUDNN_ATTENTION),
        "flash": partial(sdpa, SDPBackend.FLASH_ATTENTION),
    }
    return {**found, "flex": flex} if others else found


def sdpa(backend: SDPBackend, x: QKV) -> Call:
    """Return dense attention by one backend of PyTorch, causal where there are several queries."""
    if backend == SDPBackend.CUDNN_ATTENTION:
        _needs_cuda(x)
    causal, grouped = x.q.shape[2] > 1, x.q.shape[1] != x.k.shape[1]

    def call() -> Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(*x, is_causal=causal, enable_gqa=grouped)

    return call


def flex(x: QKV) -> Call:
    """Return compiled dense FlexAttention, causal where there are several queries."""
    _needs_cuda(x)
    blocks = -(-x.k.shape[2] // BLOCK)
    index = torch.arange(blocks, device=x.q.device, dtype=torch.int32)
    if x.q.shape[2] == 1:
        return _flex_step(x, index)
    return flex_blocks(x, (index + 1)[None, None], index.expand(1, 1, blocks, -1).contiguous())


def _flex_step(x: QKV, index: Tensor) -> Call:
    """Return FlexAttention of one query to all blocks, none of them masked."""
    from torch.nn.attention.flex_attention import BlockMask

    index = index[None, None, None]
    count = torch.full(index.shape[:3], index.shape[3], device=index.device, dtype=torch.int32)
    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(count), torch.zeros_like(index), count, index, BLOCK_SIZE=(BLOCK, BLOCK),
        seq_lengths=(1, x.k.shape[2]),
    )  # fmt: skip
    compiled = _flex(x.q.shape, x.k.shape, x.q.dtype)
    return lambda: compiled(*x, block_mask=mask, enable_gqa=True)


def flex_blocks(x: QKV, count: Tensor, index: Tensor, size: int = BLOCK) -> Call:
    """Return compiled causal FlexAttention over lists that end in each row's own block.

    That one is masked, the others are whole.
    """
    _needs_cuda(x)
    from torch.nn.attention.flex_attention import BlockMask

    tokens, blocks = x.k.shape[2], -(-x.k.shape[2] // size)
    before = dense_mask(count - 1, index, blocks)
    own = torch.arange(blocks, device=count.device, dtype=torch.int32)[:, None]
    own = F.pad(own, (0, blocks - 1)).expand(*before.shape)

    def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
        return q >= k

    mask = BlockMask.from_kv_blocks(
        torch.ones_like(count), own.contiguous(), *pack_lists(before), BLOCK_SIZE=(size, size),
        mask_mod=causal, seq_lengths=(tokens, tokens),
    )  # fmt: skip
    compiled = _flex(x.q.shape, x.k.shape, x.q.dtype, count.shape, size)
    return lambda: compiled(*x, block_mask=mask, enable_gqa=True)
