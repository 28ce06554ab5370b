"""SVG-EAR (2603.08982): the error it routes by and its compensation, against float64 oracles."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.arranged import arranged
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Centroid
from dit_sparse.core import QKV, Context
from dit_sparse.errors import ArgumentError
from dit_sparse.select.budgets import TopPBudget
from dit_sparse.testing import relative_error

GRID = Grid(4, 8, 10)
COUNTS = {"q_clusters": 9, "k_clusters": 24, "cold_iters": 8}
SCALE = 0.25
# the columns' bias log n is float32: its rounding moves their weight by eps * ln(n) / 2 at most
BAND = torch.finfo(torch.float32).eps * 4.2


def draw(tokens=GRID.tokens, groups=12, spread=0.5, heads=2, seed=0):
    """q, k, v [1, H, S, 16] float64 of tokens that fall into groups; values follow their keys."""
    g = torch.Generator().manual_seed(seed)
    kind = {"generator": g, "dtype": torch.float64}
    centre = 1.5 * torch.randn(2, 1, heads, groups, 16, **kind)
    at = torch.randint(groups, (2, 1, heads, tokens, 1), generator=g).expand(-1, -1, -1, -1, 16)
    q, k = centre.gather(3, at) + spread * torch.randn(2, 1, heads, tokens, 16, **kind)
    mix, noise = torch.randn(16, 16, **kind) / 4, torch.randn(k.shape, **kind)
    return q, k, k @ mix + spread * noise


def planned(q, k, v, grid=GRID, **params):
    """Return (method, plan, context, arranged tensors) of one call."""
    method, ctx = dit_sparse.get("svg_ear", **{**COUNTS, **params}), Context(grid=grid)
    plan = method.plan(QKV(q, k, v), ctx)
    return method, plan, ctx, QKV(*arranged(QKV(q, k, v), plan.layout, ctx))


def spans(blocks, head):
    """Return (start, end) of every block of a head of the first batch element."""
    return list(pairwise(blocks.bounds()[0, head].tolist()))


def error_of(q, k, v, kbar, vbar, values=True):
    """Return sum_n ||exp(q . kbar) vbar - exp(q . k_n) v_n||^2 for queries [R, D]: [R]."""
    a, b = (SCALE * q @ kbar).exp(), (SCALE * q @ k.T).exp()
    if not values:
        return (a[:, None] - b).square().sum(-1)
    return (a[:, None, None] * vbar - b[..., None] * v).square().sum((-2, -1))


def oracle(moved, plan, head, budget, values=True):
    """Return (score, level, output of the arranged queries) of a head, block by block."""
    q, k, v = (t[0, head] for t in moved)
    cols = spans(plan.layout.kv, head)
    size = torch.tensor([b - a for a, b in cols])
    kbar, vbar = (torch.stack([x[a:b].mean(0).nan_to_num() for a, b in cols]) for x in (k, v))
    scores, levels, outs = [], [], []
    for a, b in spans(plan.layout.q, head):
        centre = q[a:b].mean(0, keepdim=True)
        parts = [
            error_of(centre, k[c:d], v[c:d], *m, values) / max(d - c, 1)
            for (c, d), *m in zip(cols, kbar, vbar, strict=True)
        ]
        score = torch.cat(parts).where(size > 1, 0)
        level, left = torch.zeros(len(cols), dtype=torch.bool), budget(centre, kbar, size)
        for j in score.argsort(descending=True, stable=True):
            if left <= 0:
                break
            level[j], left = size[j] > 0, left - size[j]
        seen = level.repeat_interleave(size)
        exact = (SCALE * q[a:b] @ k.T).masked_fill(~seen, float("-inf"))
        rest = (SCALE * q[a:b] @ kbar.T + size.log()).masked_fill(level, float("-inf"))
        p = torch.cat([exact, rest], -1).softmax(-1)
        outs.append(p @ torch.cat([v, vbar]))
        scores.append(score)
        levels.append(level)
    return torch.stack(scores), torch.stack(levels), torch.cat(outs)


def mass_budget(top_p, least):
    def tokens(centre, kbar, size):
        mass = (SCALE * centre @ kbar.T + size.log()).softmax(-1)[0]
        ranked = mass.sort(descending=True)
        reached = (ranked.values.cumsum(0) < top_p).sum().item() + 1
        return size[ranked.indices[: max(reached, least)]].sum()

    return tokens


@pytest.mark.parametrize("probe", ["value", "key"])
@pytest.mark.parametrize("top_p,min_keep", [(0.85, 0.1), (0.4, 0.25)])
def test_equals_the_oracle(probe, top_p, min_keep):
    params = {"probe": probe, "top_p": top_p, "min_keep": min_keep}
    method, plan, ctx, moved = planned(*draw(), **params)
    found = method.score(moved, plan.layout, ctx)
    for impl in ("reference", "torch"):
        out = method.compute(QKV(*draw()), plan, replace(ctx, impl=impl, cache={}))
        for h in range(2):
            some = plan.layout.q.sizes()[0, h] > 0
            budget = mass_budget(top_p, int(min_keep * 24))
            score, level, want = oracle(moved, plan, h, budget, probe == "value")
            assert torch.allclose(found[0, h].exp()[some], score[some], rtol=1e-9, atol=1e-12)
            assert torch.equal(plan.level[0, h].bool()[some], level[some])
            got = out[0, h].gather(0, plan.layout.q.order[0, h][:, None].expand(-1, 16))
            assert relative_error(got, want) < BAND


def test_equal_keys_in_each_cluster_need_no_exact_block():
    """Then the mean stands for its keys exactly, the error is rounding, and any plan is dense."""
    q, k, v = draw()
    at = torch.randint(24, (GRID.tokens,), generator=torch.Generator().manual_seed(1))
    k, v = k[:, :, at], v[:, :, at]
    method, plan, ctx, moved = planned(q, k, v, keep=0.01, k_clusters=60, cold_iters=30)
    eps = torch.finfo(torch.float64).eps
    # the logits are below 20, the largest weight of a key is exp(2 * 20)
    assert method.score(moved, plan.layout, ctx).amax() < 2 * torch.log(torch.tensor(eps)) + 50
    out = dit_sparse.attention(q, k, v, method, grid=GRID)
    assert relative_error(out, dit_sparse.attention(q, k, v, "dense")) < BAND


def test_clusters_of_one_key_are_routed_last():
    q, k, v = draw()
    method, plan, ctx, moved = planned(q, k, v, k_clusters=200, keep=0.3)
    size, score = plan.layout.kv.sizes()[:, :, None], method.score(moved, plan.layout, ctx)
    assert (size == 1).sum() > 50 and ((score == float("-inf")) == (size <= 1)).all()
    assert not (plan.level.bool() & (size <= 1)).any(), "spent on a key that its mean equals"
    everyone = dit_sparse.get("svg_ear", k_clusters=GRID.tokens, cold_iters=1, keep=0.01)
    plan = everyone.plan(QKV(q, k, v), Context(grid=GRID))
    assert (plan.level.sum(-1) >= 1).all(), "no error anywhere: still one block"
    out = dit_sparse.attention(q, k, v, everyone, grid=GRID)
    assert relative_error(out, dit_sparse.attention(q, k, v, "dense")) < BAND


def test_mean_values_may_stand_for_values_of_compensated_blocks():
    """And by Jensen the compensated normaliser is never above the full one."""
    q, k, v = draw()
    _, plan, _, moved = planned(q, k, v, keep=0.3)
    for h in range(2):
        cols, (q_, k_, v_) = spans(plan.layout.kv, h), (t[0, h] for t in moved)
        kbar, vbar = (
            torch.cat([x[a:b].mean(0).expand(b - a, -1) for a, b in cols]) for x in (k_, v_)
        )
        level = plan.level[0, h].bool().repeat_interleave(plan.layout.q.sizes()[0, h], 0)
        level = level.repeat_interleave(plan.layout.kv.sizes()[0, h], 1)
        full = SCALE * q_ @ k_.T
        logits = torch.where(level, full, SCALE * q_ @ kbar.T)
        assert (logits.logsumexp(-1) <= full.logsumexp(-1) + 1e-12).all()
        p = logits.softmax(-1)
        means = p.masked_fill(level, 0) @ vbar + p.masked_fill(~level, 0) @ v_
        assert relative_error(means, p @ v_) < 1e-12


def test_ranking_knows_neither_the_shift_of_logits_nor_the_scale_of_values():
    method, plan, _, moved = planned(*draw(), top_p=0.5)
    layout = plan.layout._replace(
        q=replace(plan.layout.q, order=None), kv=replace(plan.layout.kv, order=None)
    )
    # a constant vector added to all keys adds one constant to the logits of a query
    shift = torch.randn(1, 2, 1, 16, dtype=torch.float64)
    base, scaled, shifted = (
        method.score(x, layout, Context(grid=GRID))
        for x in (moved, moved._replace(v=3 * moved.v), moved._replace(k=moved.k + shift))
    )
    some = base.isfinite()
    assert torch.allclose((scaled - base)[some], torch.tensor(9.0).double().log())
    moved_by = (shifted - base).masked_fill(~some, float("nan"))
    same = moved_by.nanmean(-1, keepdim=True).expand_as(moved_by)[some]
    assert same.abs().max() > 1 and torch.allclose(moved_by[some], same, atol=1e-8)


def test_equal_queries_make_the_estimate_exact():
    q, k, v = draw()
    q = q[:, :, :9].repeat_interleave(36, 2)[:, :, : GRID.tokens]
    method, plan, ctx, moved = planned(q, k, v, cold_iters=20)
    score = method.score(moved, plan.layout, ctx)
    rows, cols = spans(plan.layout.q, 0), spans(plan.layout.kv, 0)
    for m, (a, b) in enumerate(rows):
        some = moved.q[0, 0, a:b]
        if b == a or (some - some[:1]).abs().max() > 1e-12:
            continue
        for n, (c, d) in enumerate(cols):
            keys, values = moved.k[0, 0, c:d], moved.v[0, 0, c:d]
            if d - c > 1:
                true = error_of(some, keys, values, keys.mean(0), values.mean(0)) / (d - c)
                assert torch.allclose(score[0, 0, m, n].exp().expand(b - a), true, rtol=1e-8)


def test_the_budget_is_that_of_the_prefix():
    """Tokens kept reach the tokens of SVG2's prefix, and would not without the last block."""
    q, k, v = draw()
    method, plan, ctx, moved = planned(q, k, v, top_p=0.6, min_keep=0.2)
    size = plan.layout.kv.sizes().double()
    score = method.score(moved, plan.layout, ctx)
    prefix = dit_sparse.get("svg2", top_p=0.6, min_keep=0.2).select
    budget = (prefix(ctx.cache["centroid mass"], plan.layout, ctx) * size[:, :, None]).sum(-1)
    kept = plan.level.bool()
    last = score.masked_fill(~kept, float("inf")).argmin(-1)
    spent = (kept * size[:, :, None]).sum(-1)
    assert (spent >= budget).all() and (spent - size.gather(-1, last) < budget).all()


def test_bad_values():
    layout = planned(*draw())[1].layout
    with pytest.raises(ArgumentError, match="ProbedError"):
        TopPBudget()(torch.zeros(1, 2, 9, 24), layout, Context(grid=GRID))
    for name, value in (("probe", "both"), ("keep", 2), ("top_p", 0), ("min_keep", -1)):
        with pytest.raises(ArgumentError, match=f"{name}={value!r}"):
            dit_sparse.get("svg_ear", **{name: value})


def test_routing_beats_compensation_beats_dropping():
    """At equal density, over several draws (Fig. 6a); the orders of the means, not of each draw."""
    grid, errors = Grid(4, 12, 16), torch.zeros(3)
    for seed in range(4):
        q, k, v = draw(grid.tokens, groups=20, spread=0.8, seed=seed)
        truth = dit_sparse.attention(q, k, v, "dense")
        params = {"keep": 0.25, "q_clusters": 16, "k_clusters": 32, "cold_iters": 10}
        drop, route = (dit_sparse.get(n, **params) for n in ("svg2", "svg_ear"))
        mean = replace(drop, compute=Attend(Centroid()))
        for i, method in enumerate((route, mean, drop)):
            out = dit_sparse.attention(q, k, v, method, grid=grid)
            errors[i] += (out - truth).square().mean()
    assert errors[0] < 0.9 * errors[1] and errors[1] < 0.9 * errors[2], errors
