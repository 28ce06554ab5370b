"""PISA by its formulas, token by token in float64, and tensors of the kind it is made for."""

import torch

import dit_sparse

BLOCK = 64
# the columns' bias log n is float32: its rounding moves their weight by eps * ln(n) / 2 at most
BAND = torch.finfo(torch.float32).eps * 4.2


def draw(tokens=320, dim=16, seed=0, spread=1.0, size=2.0):
    """q, k, v [1, 2, S, D] float64: keys clustered by block, values that follow the keys.

    size: of the queries and of the clusters' centres."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(1, 2, -(-tokens // BLOCK), 1, dim, generator=g, dtype=torch.float64)
    centre = centre.expand(-1, -1, -1, BLOCK, -1).flatten(2, 3)[:, :, :tokens]
    q, noise, v = torch.randn(3, 1, 2, tokens, dim, generator=g, dtype=torch.float64)
    mix = torch.randn(dim, dim, generator=g, dtype=torch.float64) / dim**0.5
    k = size * centre + spread * noise
    return size * q, k, k @ mix + 0.3 * v


def covariances(k, v):
    """Return every block's H_j, [B, H, N, D, Dv]."""
    pairs = zip(*(t.split(BLOCK, dim=2) for t in (k, v)), strict=True)
    return torch.stack([(kb - kb.mean(2, keepdim=True)).mT @ vb for kb, vb in pairs], 2)


def oracle(q, k, v, keep, order=1, first_order="global", error_bias=True, sinks=(), queries=BLOCK):
    """Return PISA's output by its formulas, block by block, with a full softmax in float64."""
    s, dim = q.shape[2], q.shape[3]
    scale = dim**-0.5
    qs, ks, vs = (t.split(n, dim=2) for t, n in ((q, queries), (k, BLOCK), (v, BLOCK)))
    kbar = torch.stack([b.mean(2) for b in ks], 2)
    vbar = torch.stack([b.mean(2) for b in vs], 2)
    h = covariances(k, v)
    n = torch.tensor([b.shape[2] for b in ks], dtype=torch.float64)
    out = []
    for rows in qs:
        score = scale * rows.mean(2, keepdim=True) @ kbar.mT
        if error_bias:
            score = score + (h.flatten(-2).norm(dim=-1) + 1e-5).log()[:, :, None]
        score[..., list(sinks)] = float("inf")
        kept = torch.zeros_like(score, dtype=torch.bool)
        kept.scatter_(-1, score.topk(max(1, int(keep * len(ks))), -1).indices, True)
        tokens = kept.repeat_interleave(n.long(), -1)
        exact = (scale * rows @ k.mT).masked_fill(~tokens, float("-inf"))
        tail = (scale * rows @ kbar.mT + n.log()).masked_fill(kept, float("-inf"))
        p, e = torch.cat([exact, tail], -1).softmax(-1).split([s, len(ks)], -1)
        o = p @ v + e @ vbar
        if order == 1 and first_order == "block":
            o = o + scale * torch.einsum("bhtj,bhtd,bhjde->bhte", e / n, rows, h)
        elif order == 1:
            o = o + e.sum(-1, keepdim=True) * scale * (rows @ h.sum(2)) / s
        out.append(o)
    return torch.cat(out, 2)


def pisa(q, k, v, impl="torch", **params):
    return dit_sparse.attention(q, k, v, "pisa", impl=impl, **{"keep": 0.25, **params})
