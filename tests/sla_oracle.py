"""SLA by its definitions: a token-level oracle in float64, and tensors to compare it on."""

import torch

import dit_sparse
from dit_sparse.arranged import arranged
from dit_sparse.compute.linear import Linear
from dit_sparse.core import QKV, Context, Plan

DIM, BLOCK = 16, (16, 16)
CLOSE = 1e-12  # float64 throughout
PHI = {
    "softmax": lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
    "elu": lambda x: torch.where(x > 0, x + 1, x.exp()),
    "relu": lambda x: x * (x > 0),
}
SMALL = {"keep": 0.2, "negligible": 0.3, "block": BLOCK}


def draw(tokens=208, heads=2, seed=0):
    """q, k, v [1, H, S, D] float64, their block means distinct."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(3, 1, heads, -(-tokens // 8), 1, DIM, generator=g, dtype=torch.float64)
    noise = torch.randn(3, 1, heads, tokens, DIM, generator=g, dtype=torch.float64)
    return base.expand(-1, -1, -1, -1, 8, -1).flatten(3, 4)[..., :tokens, :] + noise


def projection(seed=1, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(DIM, DIM, generator=g), torch.randn(DIM, generator=g)
    return {"proj_l.weight": scale * weight, "proj_l.bias": scale * bias}


def run(q, k, v, weights=None, impl="torch", grid=None, **params):
    ctx = Context(grid=grid, impl=impl, weights=weights or {})
    return dit_sparse.get("sla", **{**SMALL, **params})(QKV(q, k, v), ctx)


def oracle(
    q, k, v, weights=None, keep=0.2, negligible=0.3, variant="masked", phi="softmax", block=BLOCK
):
    """Return O, from the definitions: every block's tokens, one query block at a time."""
    ones, feature = torch.ones_like(k[..., :1]), PHI[phi]
    weights = {n: t.double() for n, t in (weights or {}).items()}
    starts = range(0, k.shape[2], block[1])
    means = torch.stack([k[:, :, s : s + block[1]].mean(2) for s in starts], 2)
    if "proj_k.weight" in weights:
        means = means @ weights["proj_k.weight"].T
    out = []
    for i, rows in enumerate(q.split(block[0], 2)):
        mean = rows.mean(2, keepdim=True)
        if "proj_q.weight" in weights:
            mean = mean @ weights["proj_q.weight"].T
        rank = (mean @ means.mT).argsort(-1, descending=True).argsort(-1)  # 0 = best
        n = means.shape[2]
        best, worst = rank < max(1, int(keep * n)), rank >= n - int(negligible * n)
        seen = {"masked": ~best & ~worst, "global": rank >= 0, "sla2": ~best}[variant]
        best, seen = (m.repeat_interleave(block[1], -1)[..., : k.shape[2]] for m in (best, seen))
        logits = (DIM**-0.5 * rows @ k.mT).masked_fill(~best, -torch.inf)
        exact = logits.softmax(-1) @ v
        weight = feature(rows) @ feature(k).mT * seen
        mass = weight @ ones + (1e-5 if variant == "global" else 0)
        live = mass > 0
        linear = (weight @ v / mass.where(live, 1)).where(live, 0)
        if "alpha" in weights:
            alpha = weights["alpha"].expand(rows.shape[1], -1)[None, :, i, None, None]
            exact = torch.where(live, alpha * exact + (1 - alpha) * linear, exact)
        elif weights:
            exact = exact + linear @ weights["proj_l.weight"].T + weights["proj_l.bias"]
        out.append(exact)
    return torch.cat(out, 2)


def branch(x, level, phi="softmax", scope="rest", impl="torch"):
    """Return O_l alone, of a given choice of blocks: W = 1, b = 0, O_s = 0."""
    weights = {"proj_l.weight": torch.eye(DIM)}
    ctx = Context(impl=impl, weights=weights)
    layout = dit_sparse.get("sla", **SMALL).arrange(x, ctx)
    zero = torch.zeros_like(x.q)
    moved, plan = arranged(x, layout, ctx), Plan(layout, level)
    return Linear(phi, scope).finish(zero, zero[..., 0], moved, plan, ctx)
