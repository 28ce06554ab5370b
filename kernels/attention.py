"""Block-sparse attention: the public wrapper, its dispatch, and the one `torch.library` op.

    out_i = ( sum_{j kept} e^{s q_i k_j} v_j  +  sum_c e^{s q_i k_c + bias_c} v_c ) / Z_i  +
    (mass_i / Z_i) s q_i T

Z_i sums both groups of exponentials, mass_i the columns alone. Every method of the package ends
here: kept blocks (draft, svg2, vsa, ...), pooled levels and centroids as columns (psa, ...),
PISA's first order as the tail. Importing this file imports no Triton.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from dit_sparse.kernels.choice import KERNELS, implementation, kernel, triton_missing, why_not_fp8
from dit_sparse.kernels.contract import (
    IMPLS,
    QUANTS,
    Columns,
    Cut,
    allocate,
    as_cut,
    as_scale,
    check,
    check_values,
)
from dit_sparse.kernels.quant import rounding

__all__ = [
    "IMPLS", "KERNELS", "QUANTS", "Columns", "Cut", "block_sparse_attention", "implementation",
    "kernel", "triton_missing",
]  # fmt: skip

_MODULES = {
    "hopper": "hopper",
    "hopper fp8": "hopper_fp8",
    "triton": "block_sparse",
    "torch": "gather",
    "reference": "reference",
}
# those that read queries and write outputs by an order; for the others both are moved
_ORDERED = ("triton", "hopper")


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_count: Tensor,
    kv_index: Tensor,
    *,
    q_blocks: Cut | int,
    kv_blocks: Cut | int,
    columns: Columns | None = None,
    tail: Tensor | None = None,
    row_mask: Tensor | None = None,
    q_order: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    impl: str = "auto",
    quant: str = "none",
) -> tuple[Tensor, Tensor]:
    """Attend every query block to its listed key blocks, and to extra columns in the same softmax.

    q: [B, H, Sq, D] in arranged order, or in any with `q_order`; k: [B, Hkv, Skv, D], v: [B, Hkv,
        Skv, Dv] in arranged order; kv head = q head // (H // Hkv)
    kv_count: [B, H, M] int32 kept key blocks per query block; kv_index: [B, H, M, C] int32 their
        distinct ids, packed left, C <= N; any order is correct, ascending is fastest
    q_blocks, kv_blocks: a block size (the last block may be short) or a Cut with offsets
    v must be finite on every token, kept or not, and so must columns, hidden or not: a hidden value
        may be multiplied by a weight of 0
    columns: see Columns; tail: [B, H or Hkv, D, Dv], adds (mass of the columns / total mass) *
        scale * q @ tail
    row_mask: None or bool/int8 [B, H or 1, Sq, N], which of its listed key blocks each single query
        sees (queries of one block that choose for themselves; the list is their union)
    q_order: None or int32/int64 [B or 1, H or 1, Sq], the place in q of each query in arranged
        order: where it is read, and where its out and lse are written
    causal: query i sees keys j <= i + Skv - Sq (positions on the given axis; columns follow their
        mask alone)
    scale: default D ** -0.5; impl: auto, hopper, triton, torch or reference; an explicit choice
        never falls back
    quant: "none", or "fp8" for products of 8-bit numbers (see quant.py), relative error at most .05
        of the output; the Hopper kernel does it, but for columns and unequal key blocks; torch and
        reference round q, k and v likewise; elsewhere impl "auto" leaves it out; no gradients
    returns: out [B, H, Sq, Dv] in q's dtype, lse [B, H, Sq] float32 (natural log, exact keys and
        columns); a query that sees nothing, or lies in no block, gives 0 and -inf

    Differentiable in q, k, v, columns and tail with the lists frozen; backward recomputes in torch
    (correct, slow).

    >>> x = torch.randn(1, 2, 256, 64)
    >>> count = torch.full((1, 2, 4), 2, dtype=torch.int32)
    >>> index = torch.tensor([0, 3], dtype=torch.int32).expand(1, 2, 4, 2)
    >>> out, lse = block_sparse_attention(x, x, x, count, index, q_blocks=64, kv_blocks=64)
    """
    if impl not in KERNELS:
        raise ValueError(f"impl must be {', '.join(KERNELS)}, got {impl!r}")
    q_blocks, kv_blocks = as_cut(q_blocks), as_cut(kv_blocks)
    # a compiler checks in the op's fake instead: its tracer stumbles over checks of symbolic sizes
    if not torch.compiler.is_compiling():
        more = columns, tail, row_mask, scale, q_order, quant, causal
        check(q, k, v, kv_count, kv_index, q_blocks, kv_blocks, *more)
        tokens = q.shape[2], k.shape[2]
        check_values(kv_count, kv_index, q_blocks, kv_blocks, tokens, columns, q_order)
    scale = as_scale(scale, q.shape[-1])
    c = columns or Columns(None, None)  # type: ignore[arg-type]
    if c.k is not None and c.k.shape[2] == 0:
        c, tail = Columns(None, None), None  # type: ignore[arg-type]
    return torch.ops.dit_sparse.block_sparse_attention(
        q, k, v, kv_count, kv_index, q_blocks.size, q_blocks.offsets, kv_blocks.size,
        kv_blocks.offsets, c.k, c.v, c.bias, c.mask, c.count, c.index, c.group, tail, row_mask,
        q_order, causal, scale, impl, quant,
    )  # fmt: skip


def _dispatch(
    q, k, v, kv_count, kv_index, q_size, q_offsets, kv_size, kv_offsets, col_k, col_v, col_bias,
    col_mask, col_count, col_index, col_group, tail, row_mask, q_order, causal, scale, impl,
    quant="none",
):  # fmt: skip
    q_blocks, kv_blocks, columns = Cut(q_size, q_offsets), Cut(kv_size, kv_offsets), None
    if col_k is not None:
        columns = Columns(col_k, col_v, col_bias, col_mask, col_count, col_index, col_group)
    shape = {
        "q_blocks": q_blocks,
        "kv_blocks": kv_blocks,
        "columns": columns,
        "row_mask": row_mask,
        "causal": causal,
    }
    name, _ = kernel(q, k, v, **shape, impl=impl)
    if name in ("hopper", "triton") and triton_missing():
        raise RuntimeError(f"impl={name!r} cannot run: {triton_missing()}")
    options = {**shape, "tail": tail, "scale": scale}
    if quant == "fp8":
        why_not = why_not_fp8(name, kv_blocks, columns)
        if why_not and impl != "auto":
            raise ValueError(f"impl={impl!r} cannot run quant='fp8': {why_not}")
        quant = "none" if why_not else quant
    attend = _attend(name, quant)
    if q_order is None:
        return attend(q, k, v, kv_count, kv_index, **options)
    if name in _ORDERED and row_mask is None and quant == "none":
        return attend(q, k, v, kv_count, kv_index, **options, q_order=q_order)
    from dit_sparse.kernels.permute import permute_tokens

    # the torch form of a move has gradients
    own = "triton" if name in ("hopper", "triton") else "torch"
    q = permute_tokens(q, q_order, impl=own)
    moved = attend(q, k, v, kv_count, kv_index, **options)
    out, lse = (
        permute_tokens(x, q_order, inverse=True, impl=own) for x in (moved[0], moved[1][..., None])
    )
    return out, lse[..., 0]


def _attend(name: str, quant: str):
    """Return the function of a kernel; with quant="fp8" it takes 8-bit numbers, or rounds to
    them."""
    key = f"{name} {quant}"
    module = importlib.import_module(f"dit_sparse.kernels.{_MODULES.get(key, _MODULES[name])}")
    if quant == "none" or key in _MODULES:
        return module.block_sparse_attention
    return rounding(module.block_sparse_attention)


@torch.library.custom_op("dit_sparse::block_sparse_attention", mutates_args=())
def _attention_op(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, q_size: int, q_offsets:
    Tensor | None, kv_size: int, kv_offsets: Tensor | None, col_k: Tensor | None, col_v: Tensor |
    None, col_bias: Tensor | None, col_mask: Tensor | None, col_count: Tensor | None, col_index:
    Tensor | None, col_group: int, tail: Tensor | None, row_mask: Tensor | None, q_order:
    Tensor | None, causal: bool, scale: float, impl: str, quant: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, lse = _dispatch(
        q, k, v, kv_count, kv_index, q_size, q_offsets, kv_size, kv_offsets, col_k, col_v,
        col_bias, col_mask, col_count, col_index, col_group, tail, row_mask, q_order, causal, scale,
        impl, quant,
    )  # fmt: skip
    # torch and reference return their own memory order; the op promises the one of `allocate`
    if q.stride(1) < q.stride(2):
        return out.transpose(1, 2).contiguous().transpose(1, 2), lse
    return out.contiguous(), lse


@_attention_op.register_fake
def _attention_fake(
    q, k, v, kv_count, kv_index, q_size, q_offsets, kv_size, kv_offsets, col_k, col_v, col_bias,
    col_mask, col_count, col_index, col_group, tail, row_mask, q_order, causal, scale, impl,
    quant,
):  # fmt: skip
    columns = None
    if col_k is not None:
        columns = Columns(col_k, col_v, col_bias, col_mask, col_count, col_index, col_group)
    cuts = Cut(q_size, q_offsets), Cut(kv_size, kv_offsets)
    check(q, k, v, kv_count, kv_index, *cuts, columns, tail, row_mask, scale, q_order, quant)
    return allocate(q, v.shape[-1])


# places of the differentiable inputs: q, k, v, col_k, col_v, col_bias, tail
_PLACES = (0, 1, 2, 9, 10, 11, 16)


def _record() -> torch._C._ForceDispatchKeyGuard:
    """Let autograd record inside an op's body, where the dispatcher has switched it off."""
    hidden = torch._C._dispatch_tls_local_exclude_set()
    for key in (
        "AutogradCPU",
        "AutogradCUDA",
        "AutogradOther",
        "AutogradXPU",
        "AutogradMPS",
        "ADInplaceOrView",
    ):
        hidden = hidden.remove(getattr(torch._C.DispatchKey, key))
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), hidden)


@torch.library.custom_op("dit_sparse::block_sparse_attention_backward", mutates_args=())
def _backward_op(
    grad_out: Tensor, grad_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor,
    kv_index: Tensor, q_size: int, q_offsets: Tensor | None, kv_size: int, kv_offsets: Tensor |
    None, col_k: Tensor | None, col_v: Tensor | None, col_bias: Tensor | None, col_mask: Tensor |
    None, col_count: Tensor | None, col_index: Tensor | None, col_group: int, tail: Tensor | None,
    row_mask: Tensor | None, q_order: Tensor | None, causal: bool, scale: float,
) -> list[Tensor]:  # fmt: skip
    args = [
        q, k, v, kv_count, kv_index, q_size, q_offsets, kv_size, kv_offsets, col_k, col_v,
        col_bias, col_mask, col_count, col_index, col_group, tail, row_mask, q_order, causal, scale,
        "torch",
    ]  # fmt: skip
    with torch.enable_grad(), _record():
        for place in _PLACES:
            if args[place] is not None:
                args[place] = args[place].detach().requires_grad_()
        out, lse = _dispatch(*args)
        # a query that sees nothing has lse -inf and no gradient
        lse = torch.where(lse.isinf(), torch.zeros_like(lse), lse)
        inputs = [args[p] for p in _PLACES if args[p] is not None]
        grads = torch.autograd.grad((out, lse), inputs, (grad_out, grad_lse), allow_unused=True)
    return [
        torch.zeros_like(x) if g is None else g.contiguous()
        for x, g in zip(inputs, grads, strict=True)
    ]


@_backward_op.register_fake
def _backward_fake(grad_out, grad_lse, *args):
    inputs = [args[p] for p in _PLACES if args[p] is not None]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.plain = tuple(None if isinstance(x, Tensor) else x for x in inputs)


def _backward(ctx, grad_out, grad_lse):
    pairs = zip(ctx.saved_tensors, ctx.plain, strict=True)
    inputs = [saved if saved is not None else plain for saved, plain in pairs]
    grads = torch.ops.dit_sparse.block_sparse_attention_backward(grad_out, grad_lse, *inputs[:-2])
    result: list = [None] * len(inputs)
    for place, grad in zip((p for p in _PLACES if inputs[p] is not None), grads, strict=True):
        result[place] = grad if ctx.needs_input_grad[place] else None
    return tuple(result)


_attention_op.register_autograd(_backward, setup_context=_save)
