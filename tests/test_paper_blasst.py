"""BLASST (2512.12087): what skipping by the running maximum implies."""

from dataclasses import replace
from itertools import pairwise
from math import exp, log

import pytest
import torch

import dit_sparse
from dit_sparse.compute.attend import Attend
from dit_sparse.core import QKV
from dit_sparse.errors import ArgumentError
from dit_sparse.methods.blasst import fit, sparsity
from dit_sparse.score.pooled import PooledDot
from dit_sparse.select.topk import TopK
from dit_sparse.testing import relative_error
from tests.text_oracle import attend, problem, tokens, visible, weights

BLOCK = (16, 16)
# float64 sums of at most 300 terms
BAND = 1e-12
# a density is float32, summed over a few hundred blocks
SINGLE = 1e-5
LENGTHS = [(96, 96), (101, 101), (40, 131), (1, 120)]


def blasst(factor, **params):
    return dit_sparse.get("blasst", factor=factor, decode_factor=factor, block=BLOCK, **params)


@pytest.mark.parametrize("stage", ["score", "select", "compute"])
def test_the_choice_is_left_to_a_kernel_that_can_make_it(stage):
    """With another stage in the place of one, it is made before, by the score."""
    other = {"score": PooledDot(), "select": TopK(0.5), "compute": Attend()}[stage]
    method, given = replace(blasst(2.0), **{stage: other}), problem(96)
    plan = method.plan(given.x, given.context("torch"))
    assert plan.edge is None and (plan.density() < 0.99 or stage == "score")
    out = method(given.x, given.context("torch"))
    assert relative_error(out, attend(given.x, tokens(plan))) < BAND


def online(x, factor):
    """Run an online softmax tile by tile, as the kernel would; return its output and its tiles."""
    (heads, queries), keys = x.q.shape[1:3], x.k.shape[2]
    group = heads // x.k.shape[1]
    edge = log(min(1.0, factor / keys)) if factor else float("-inf")
    k, v = (t.repeat_interleave(group, 1) for t in x[1:])
    logits = (x.q @ k.mT * x.q.shape[-1] ** -0.5).masked_fill(
        ~visible(queries, keys), float("-inf")
    )
    out, kept = torch.zeros_like(x.q), torch.zeros(heads, -(-queries // 16), -(-keys // 16)).bool()
    for start in range(0, queries, 16):
        rows = slice(start, start + 16)
        last = min(start + 16, queries) - 1 + keys - queries
        peak = torch.full((heads, queries, 1), float("-inf"), dtype=x.q.dtype)[:, rows]
        acc, total = torch.zeros_like(x.q[0, :, rows]), torch.zeros_like(peak)
        for j in range(last // 16 + 1):
            tile = logits[0, :, rows, j * 16 : j * 16 + 16]
            top = tile.amax(-1, keepdim=True)
            new = torch.maximum(peak, top)
            go = ((top - new) >= edge).any(1)[:, 0]
            if queries == 1:
                # the heads of a group are one tile
                go = go.unflatten(0, (-1, group)).any(1).repeat_interleave(group)
            # the diagonal is never skipped
            go = go | ((j + 1) * 16 > start + keys - queries)
            kept[:, start // 16, j] = go
            p = (tile - new).exp()
            shrink = (peak - new).exp()
            use = go[:, None, None]
            fresh = acc * shrink + p @ v[0, :, j * 16 : j * 16 + 16]
            acc = torch.where(use, fresh, acc)
            total = torch.where(use, total * shrink + p.sum(-1, keepdim=True), total)
            peak = torch.where(use, new, peak)
        out[0, :, rows] = acc / total
    return out, kept


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("factor", [0.0, 10.0, 40.0, 1000.0])
def test_the_kernel_loop_gives_the_same(queries, keys, factor):
    """Also where its running maximum stays behind, because a skipped tile does not raise it."""
    x = problem(queries, keys, heads=4).x
    x = QKV(3 * x.q, x.k[:, ::2], x.v[:, ::2])
    given = problem(queries, keys)
    truth, kept = online(x, factor)
    plan = blasst(factor).plan(x, given.context())
    assert torch.equal((plan.level == 1)[0] & (plan.pairs() > 0)[0], kept)
    # before the kernel, and in it: the same output, and what is computed is counted
    method, ctx = blasst(factor), given.context("torch")
    late = method.plan(x, ctx)
    assert (late.edge is None) == (queries == 1)
    assert relative_error(method.compute(x, late, ctx), truth) < BAND
    assert relative_error(method(x, given.context("reference")), truth) < BAND
    assert relative_error(truth, attend(x, tokens(plan))) < BAND
    assert (plan.density() > 1 - 1e-6) == (factor == 0)
    if queries > 1:
        assert late.density() == 1 and ctx.cache["kernel"][0] == "torch"
        assert abs(ctx.cache["density"] - plan.density()) < SINGLE


@pytest.mark.parametrize("factor", [5.0, 30.0])
def test_what_is_dropped_is_bounded(factor):
    """Each skipped key weighs less than lambda times the row's largest weight."""
    given = problem(160)
    x = given.x._replace(q=4 * given.x.q)
    p, seen = weights(x), tokens(blasst(factor).plan(x, given.context()))
    dropped = visible(160, 160) & ~seen
    mass = (p * dropped).sum(-1) / p.amax(-1)
    assert dropped.any() and (mass <= factor / 160 * dropped.sum(-1)).all()


def test_gradients_take_the_choice_before_the_kernel():
    """The kernel has no backward; the lists have."""
    given = problem(96)
    x = QKV(*(t.clone().requires_grad_() for t in given.x))
    ctx = given.context("torch")
    method = blasst(40.0)
    assert method.plan(x, ctx).edge is None
    out = method(x, given.context("torch"))
    out.square().sum().backward()
    assert all(t.grad.isfinite().all() and t.grad.any() for t in x)
    with torch.no_grad():
        assert relative_error(out, method(x, given.context("torch"))) < BAND


def test_a_larger_factor_skips_more():
    given = problem(160)
    x = given.x._replace(q=4 * given.x.q)
    levels = [blasst(f).plan(x, given.context()).level for f in (0, 1, 10, 50, 160)]
    assert all((b <= a).all() for a, b in pairwise(levels))
    shares = sparsity(x, (0, 1, 10, 50, 160), BLOCK)
    assert shares[0] == 0 and all(a <= b for a, b in pairwise(shares))
    visible_blocks = (levels[0] == 1).sum()
    # the diagonal is kept in any case, which the share of the rule does not count
    assert 0 <= shares[2] - (1 - (levels[2] == 1).sum() / visible_blocks).item() < 0.1


def test_one_row_above_the_edge_keeps_a_tile():
    q, k = (torch.zeros(1, 1, 96, 4, dtype=torch.float64) for _ in range(2))
    k[:, :, 3, 0] = q[:, :, :, 0] = 20.0
    k[:, :, 43, 1] = q[:, :, 85, 1] = 20.0
    level = blasst(1.0).plan(QKV(q, k, k), problem(96).context()).level[0, 0]
    # query 85 of row block 5 sees key 43 as well as key 3, its 15 neighbours see key 3 alone
    assert level[5, 2] == 1
    assert level[4, 2] == 0 and level[5, 1] == 0 and level[5, 3] == 0


@pytest.mark.parametrize(("alpha", "beta"), [(20.0, 3.5), (300.0, 0.5)])
def test_the_fit_finds_what_was_planted(alpha, beta):
    shares = [0.0, 0.1, 0.3, 0.5, 0.8, 0.99]
    points = [(alpha * exp(beta * s), s) for s in shares]
    # ends that say nothing
    points[0], points[-1] = (1e9, 0.0), (1e-9, 0.99)
    found = fit(points)
    assert abs(found[0] / alpha - 1) < 1e-9 and abs(found[1] / beta - 1) < 1e-9
    with pytest.raises(ArgumentError, match="points: 1 of them"):
        fit([(3.0, 0.5), (4.0, 0.99)])


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"factor": -1.0}, "factor=-1.0"),
        ({"decode_factor": float("nan")}, "decode_factor=nan"),
        ({"block": (3,)}, "block="),
        ({"block": (128, 48)}, r"block=\(128, 48\).*128"),
    ],
)
def test_refusals(params, words):
    with pytest.raises(ArgumentError, match=words):
        dit_sparse.get("blasst", **params)
