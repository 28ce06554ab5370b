"""Scores between the means of query and key blocks, and attention between them.

    s_ij = scale * q_i . k_j + log n_j + log(w_j + eps),    p_ij = e^{s_ij} / Z_i,
    Z_i = sum_j e^{s_ij} + sum_t e^{scale * q_i . k_t}

n_j: tokens of block j; w_j: its weight; k_t: keys of the text, which only take their share. Each
term but the product is optional. Users: draft, svg2, svg_ear, rectified (p), pisa, sla, dense (s).
Arithmetic in float32, or float64 for float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Cut, as_scale, block_bounds, per_head
from dit_sparse.kernels.pool import pick


def products(q: Tensor, k: Tensor) -> Tensor:
    """Return q k^T [B, H, M, N] in float32 or wider: 2 bytes would round large logits, and float16
    overflow.

    q: [B, H, M, D], k: [B, Hkv, N, D]; the heads of a key head are rows of one product.

    >>> large = torch.full((1, 1, 1, 64), 60.0).half()
    >>> products(large, large).item()
    230400.0
    """
    wide, (heads, rows) = torch.promote_types(q.dtype, torch.float32), q.shape[1:3]
    q = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)
    wanted = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    if q.dtype == wide or wanted or not q.is_cuda or torch.version.hip is not None:
        found = q.to(wide) @ k.to(wide).mT
    else:
        # tensor cores sum in float32 anyway
        found = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT, wide)
    return found.view(q.shape[0], heads, rows, k.shape[2])


def pooled_scores(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    cut: Cut | None = None,
    tokens: int = 0,
    weight: Tensor | None = None,
    eps: float = 0.0,
    text: Tensor | None = None,
    softmax: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Return s, or with `softmax` p, [B, H, M, N] float32 or wider.

    q: [B, H, M, D], k: [B, Hkv, N, D] means, float32 or wider; scale: default D ** -0.5. cut: of
    an axis of `tokens` tokens, whose N blocks count by their tokens. weight: [B or 1, Hkv or 1, N],
    not negative. text: [B, Hkv, T, D] single keys, with `softmax` only.

    >>> q, k = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 2, 8)
    >>> pooled_scores(q, k, cut=Cut(3), tokens=4, softmax=True).tolist()
    [[[[0.75, 0.25]]]]
    """
    if text is not None and not softmax:
        raise ValueError("text must be None without softmax: it changes no single score")
    scale = as_scale(scale, q.shape[-1])
    given = [x for x in (k, weight, text) if x is not None]
    # only their gradients matter to `pick`, not the length of the last axis of weights
    if q.dtype == torch.float32 and _takes_triton(q, given, impl):
        from dit_sparse.kernels import _scores

        return _scores.pooled_scores(q, k, scale, cut, tokens, weight, eps, text, softmax)
    batch, heads = q.shape[:2]
    s = scale * q @ per_head(k, batch, heads).mT
    if cut is not None:
        start, end = block_bounds(cut, tokens, q.device)
        s = s + per_head((end - start).to(s.dtype).log(), batch, heads)[..., None, :]
    if weight is not None:
        s = s + per_head((weight.to(s.dtype) + eps).log(), batch, heads)[..., None, :]
    if not softmax:
        return s
    if text is not None:
        s = torch.cat((s, scale * q @ per_head(text.to(q.dtype), batch, heads).mT), -1)
    return s.softmax(-1)[..., : k.shape[2]]


def _takes_triton(q: Tensor, given: list[Tensor], impl: str) -> bool:
    """Return whether the Triton form runs; it has no gradient."""
    return pick(q, impl, *(x[..., :1] for x in given), limit=256) == "triton"
