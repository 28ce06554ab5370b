"""Attention of others in the same run: PyTorch's cuDNN and flash, FlexAttention, FlashAttention-4.

A baseline takes a problem and returns a call without arguments that gives out [B, H, S, D], or
raises with the reason it cannot run. None is ever required.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_sparse.bench.check import NotTimed
from dit_sparse.core import QKV
from dit_sparse.kernels.lists import dense_mask, pack_lists

Call = Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class Lists:
    """Kept key blocks of each query block: count [B, H, M], index [B, H, M, C], block sizes."""

    count: Tensor
    index: Tensor
    block_q: int
    block_kv: int

    def whole(self, tokens: int) -> Tensor:
        """Return the index as [B, H, M, N] for N key blocks: what other kernels ask for."""
        blocks = -(-tokens // self.block_kv)
        return pack_lists(dense_mask(self.count, self.index, blocks))[1]


def sdpa(backend: SDPBackend, x: QKV) -> Call:
    """Return dense attention by one backend of PyTorch."""
    if backend == SDPBackend.CUDNN_ATTENTION:
        _needs_cuda(x)

    def call() -> Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(*x)

    return call


def flash4(x: QKV) -> Call:
    """Return dense FlashAttention-4."""
    interface = _flash4(x)
    q, k, v = (t.transpose(1, 2) for t in x)

    def call() -> Tensor:
        out = interface.flash_attn_func(q, k, v)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return call


def flash4_sparse(x: QKV, lists: Lists) -> Call:
    """Return FlashAttention-4 over block lists, all of them full blocks (seen with 4.0.0b36)."""
    interface = _flash4(x)
    tensors = importlib.import_module("flash_attn.cute.block_sparsity").BlockSparseTensorsTorch
    none = torch.zeros_like(lists.count), torch.zeros_like(lists.index)
    names = ("mask_block_cnt", "mask_block_idx", "full_block_cnt", "full_block_idx")
    blocks = tensors(
        **dict(zip(names, (*none, lists.count, lists.index), strict=True)),
        block_size=(lists.block_q, lists.block_kv),
    )
    q, k, v = (t.transpose(1, 2) for t in x)

    def call() -> Tensor:
        return interface.flash_attn_func(q, k, v, block_sparse_tensors=blocks)[0].transpose(1, 2)

    return call


def flex(x: QKV, lists: Lists) -> Call:
    """Return compiled FlexAttention over block lists, all of them full blocks."""
    _needs_cuda(x)
    from torch.nn.attention.flex_attention import BlockMask

    tokens, index = x.q.shape[2], lists.whole(x.k.shape[2])
    # blocks that the sequence cuts short are whole to a kernel that masks its ends
    blocks = BlockMask.from_kv_blocks(
        torch.zeros_like(lists.count), torch.zeros_like(index), lists.count, index,
        BLOCK_SIZE=(lists.block_q, lists.block_kv), seq_lengths=(tokens, x.k.shape[2]),
    )  # fmt: skip
    options: dict[str, Any] = {}
    if min(lists.block_q, lists.block_kv) < 128:
        tile = (min(128, lists.block_q), min(64, lists.block_kv))
        options["kernel_options"] = dict(zip(("BLOCK_M", "BLOCK_N"), tile, strict=True))
    compiled = _flex(x.q.shape, x.q.dtype, lists.block_q, lists.block_kv)
    return lambda: compiled(*x, block_mask=blocks, **options)


@functools.lru_cache(maxsize=1)
def _flex(*key: object) -> Callable[..., Tensor]:
    """Compile for one shape; forget the last one, for a compiler allows few of them."""
    from torch.nn.attention.flex_attention import flex_attention

    torch.compiler.reset()
    return torch.compile(flex_attention, dynamic=False)


def _needs_cuda(x: QKV) -> None:
    if x.q.device.type != "cuda":
        raise NotTimed("needs a CUDA device")


def _flash4(x: QKV) -> Any:
    """Return FlashAttention-4's interface."""
    _needs_cuda(x)
    try:
        return importlib.import_module("flash_attn.cute.interface")
    except ImportError as error:
        raise NotTimed(f"flash_attn.cute cannot be imported ({error})") from None


DENSE: dict[str, Callable[[QKV], Call]] = {
    "cudnn": functools.partial(sdpa, SDPBackend.CUDNN_ATTENTION),
    "flash": functools.partial(sdpa, SDPBackend.FLASH_ATTENTION),
    "flash-4": flash4,
}
SPARSE: dict[str, Callable[[QKV, Lists], Call]] = {"flex": flex, "flash-4 blocks": flash4_sparse}
