"""Scores of the pages of a cache, from means that are kept while it grows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.core import QKV, Context, Layout
from dit_sparse.kernels.decode import page_scores
from dit_sparse.kernels.pool import pool_blocks

# pages that find room before the kept means move
ROOM = 64


@dataclass(frozen=True)
class PageMean:
    """q_t . mean(page), q_t the mean over the query heads of a key head, [B, H, M, N] float32.

    One choice for the heads of a group; the query blocks hold one token each. The means of full
    pages stay in ctx.state["pages"], in the keys' dtype: the last page alone is pooled anew. Who
    calls with a state says by it that the keys of the call before are still there, before the new
    ones; fewer keys, or others in number and size, begin anew. Neither scale nor gradient. Used by
    block top-k.
    """

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        q, k, heads = x.q.detach(), x.k.detach(), x.k.shape[1]
        means = kept_means(k, layout.kv.size, ctx)
        if q.shape[2] == 1:
            score = page_scores(q, means, page=1, impl=ctx.impl)
        else:
            wide = torch.promote_types(q.dtype, torch.float32)
            score = q.unflatten(1, (heads, -1)).to(wide).mean(2) @ means.to(wide).mT
        return score.repeat_interleave(q.shape[1] // heads, 1)


def kept_means(k: Tensor, page: int, ctx: Context) -> Tensor:
    """Return the mean of every page of k [B, Hkv, S, D], [B, Hkv, N, D] in its dtype."""
    (batch, heads, tokens, dim), ended = k.shape, k.shape[2] // page
    pages = -(-tokens // page)
    # what these means are of; the only page of a short sequence is as long as that
    form = (batch, heads, dim, k.dtype, k.device, page)
    known, whole, means = ctx.state.get("pages", (None, 0, None))
    if means is None or known != form or whole > ended:
        whole, means = 0, _room(k, pages)
    elif means.shape[2] < pages:
        means, old = _room(k, pages), means
        means[:, :, :whole] = old[:, :, :whole]
    if whole < pages:
        means[:, :, whole:pages] = pool_blocks(k[:, :, whole * page :], page, impl=ctx.impl)
    ctx.state["pages"] = (form, ended, means)
    return means[:, :, :pages]


def _room(k: Tensor, pages: int) -> Tensor:
    """Return an empty buffer of means, a normal tensor: later steps write into it."""
    with torch.inference_mode(False):
        return torch.empty(*k.shape[:2], pages + ROOM, k.shape[3], dtype=k.dtype, device=k.device)
