"""How wrong it is to stand a cluster's mean key and value for its tokens, per query centroid.

    E_cj = sum_{n in j} | exp(S_cj) vbar_j - exp(s_cn) v_n |^2,
    S_cj = scale * q_c . kbar_j,    s_cn = scale * q_c . k_n            (SVG-EAR, arXiv 2603.08982)

Evaluated around the mean value, u_n = v_n - vbar_j, with a shift m_cj = max(S_cj, max_n s_cn) of
each pair's own, a = exp(S - m) and b_n = exp(s_n - m):

    log E = 2 m + log sum_n [ (a - b_n)^2 |vbar|^2 - 2 (a - b_n) b_n u_n . vbar + b_n^2 |u_n|^2 ]

Nothing overflows whatever the logits, and no term is larger than the parts of the residual itself,
while the plain expansion a^2 |vbar|^2 - 2 a b v . vbar + b^2 |v|^2 cancels in tight clusters. The
key-only form, sum (exp(S) - exp(s_n))^2, is the first term with |vbar| = 1. Users: svg_ear.
Arithmetic in float32, in float64 for float64; q is rounded to k's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Cut, as_cut, as_scale, check_cut, per_head
from dit_sparse.kernels.pool import block_ids, pick

# logits that the torch form holds at once
_SCRATCH = 1 << 22


@torch.no_grad()
def probe_error(
    q: Tensor, k: Tensor, v: Tensor, k_mean: Tensor, v_mean: Tensor, blocks: Cut | int, *,
    scale: float | None = None, values: bool = True, impl: str = "auto",
) -> Tensor:  # fmt: skip
    """Return log E [B, H, C, N] float32 or wider; -inf where a block has at most one token.

    q: [B, H, C, D] query centroids; k: [B, Hkv, S, D], v: [B, Hkv, S, Dv] in arranged order
    k_mean: [B, Hkv, N, D], v_mean: [B, Hkv, N, Dv], means of the blocks, float32 or wider
    blocks: the cut of k and v; values: False for the key-only form

    >>> k, v = torch.randn(1, 2, 6, 4), torch.ones(1, 2, 6, 4)
    >>> probe_error(k[:, :, :1], k, v, k, v, 1).tolist()[0][0][0][:2]
    [-inf, -inf]
    """
    cut = as_cut(blocks)
    check_cut("blocks", cut, k.shape[0], (k.shape[1],))
    n = cut.count(k.shape[2])
    for name, mean, x in (("k_mean", k_mean, k), ("v_mean", v_mean, v)):
        want = [*x.shape[:2], n, x.shape[3]]
        if list(mean.shape) != want:
            raise ValueError(f"{name} must be {want}, got {list(mean.shape)}")
    wide = torch.promote_types(k.dtype, torch.float32)
    scale = as_scale(scale, q.shape[-1])
    q, k_mean, v_mean = q.to(k.dtype), k_mean.to(wide), v_mean.to(wide)
    if pick(k, impl, v, limit=128) == "triton":
        from dit_sparse.kernels import centroid_passes

        return centroid_passes.probe_error(q, k, v, k_mean, v_mean, cut, scale, values)
    return _probe(q.to(wide), k.to(wide), v.to(wide), k_mean, v_mean, cut, scale, values)


def _probe(
    q: Tensor, k: Tensor, v: Tensor, k_mean: Tensor, v_mean: Tensor, cut: Cut, scale: float,
    values: bool,
) -> Tensor:  # fmt: skip
    """Compute `probe_error` in torch, some query centroids at a time."""
    batch, heads = q.shape[:2]
    # one spare block for tokens that are in none
    ids, pad = block_ids(cut, k), (0, 0, 0, 1)
    k_mean, v_mean = (torch.nn.functional.pad(x, pad) for x in (k_mean, v_mean))
    near = v_mean.gather(2, ids[..., None].expand_as(v))
    off = v - near
    terms = (near.square().sum(-1), (off * near).sum(-1), off.square().sum(-1))
    # each [B, H, 1, S]
    square, cross, spread = (per_head(x, batch, heads)[:, :, None] for x in terms)
    ids, k, k_mean = (per_head(x, batch, heads) for x in (ids, k, k_mean))
    step, parts = max(1, _SCRATCH // ids.numel()), []
    for some in q.split(step, 2):
        # mean: [B, H, step, N + 1], own: [B, H, step, S]
        mean, own = (scale * some @ x.mT for x in (k_mean, k))
        at = ids[:, :, None].expand_as(own)
        top = mean.scatter_reduce(-1, at, own, "amax")
        b = (own - top.gather(-1, at)).exp()
        gap = (mean - top).exp().gather(-1, at) - b
        error = gap.square()
        if values:
            error = error * square - 2 * gap * b * cross + b.square() * spread
        error = torch.zeros_like(mean).scatter_add(-1, at, error).clamp(min=0)
        parts.append(2 * top + error.log())
    found = torch.cat(parts, 2)[..., :-1]
    # one token is its own mean: the error is exactly 0
    single = torch.zeros_like(k_mean[..., 0]).scatter_add(-1, ids, torch.ones_like(k[..., 0])) <= 1
    return found.masked_fill(single[:, :, None, :-1], float("-inf"))
