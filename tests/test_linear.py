"""The linear branch beside the exact blocks: any choice, arrangement, heads and dtype."""

from dataclasses import replace

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.arrange.tiles import Tiles
from dit_sparse.arranged import arranged
from dit_sparse.core import QKV, Context
from dit_sparse.errors import ArgumentError
from dit_sparse.testing import Problem, relative_error
from tests.sla_oracle import CLOSE, DIM, PHI, SMALL, branch, draw, oracle, projection, run


@pytest.mark.parametrize("tokens", [208, 203])
def test_equals_the_subtract_form(tokens):
    """All states less those of the critical blocks, for any choice; the code computes it so."""
    q, k, v = draw(tokens)
    level = (torch.rand(1, 2, 13, 13) < 0.6).to(torch.int8)
    level[0, 0, 3], level[0, 1, 5] = 1, 0
    fq, fk = PHI["softmax"](q).split(16, 2), PHI["softmax"](k).split(16, 2)
    h = torch.stack([a.mT @ b for a, b in zip(fk, v.split(16, 2), strict=True)], 2)
    z = torch.stack([a.sum(2) for a in fk], 2)
    truth = []
    for i, rows in enumerate(fq):
        critical = level[:, :, i].double()
        hi = h.sum(2) - (critical[..., None, None] * h).sum(2)
        zi = z.sum(2) - (critical[..., None] * z).sum(2)
        mass = rows @ zi[..., None]
        truth.append(torch.where(critical.all(-1)[..., None, None], 0, rows @ hi / mass))
    assert relative_error(branch(QKV(q, k, v), level), torch.cat(truth, 2)) < CLOSE


def test_scaled_query_features_change_nothing():
    q, k, v = draw()
    level = (torch.rand(1, 2, 13, 13) < 0.4).to(torch.int8)
    scale = torch.rand(1, 2, 208, 1, dtype=torch.float64) + 0.1
    # phi = relu: its features scale with the queries
    a, b = (branch(QKV(rows, k, v), level, phi="relu") for rows in (q, scale * q))
    assert relative_error(a, b) < CLOSE and a.norm() > 1


@pytest.mark.parametrize(
    "grid", [Grid(3, 8, 9, text=17), Grid(2, 9, 16, text=5, text_first=True), Grid(4, 6, 8, 16)]
)
def test_text_is_exact_and_outside_the_branch(grid):
    """The branch sees the video as if it were alone; queries of text stay as they are."""
    x, weights = Problem.make(grid).x, projection()
    video = slice(grid.text * grid.text_first, grid.text * grid.text_first + grid.video)
    rows = torch.zeros(grid.tokens, dtype=torch.bool)
    rows[video] = True
    alone = [t[:, :, video] for t in x]
    for variant in ("masked", "global"):
        added = oracle(*alone, weights, variant=variant) - oracle(*alone)
        for impl in ("torch", "reference"):
            delta = run(*x, weights, impl, grid, variant=variant) - run(*x, impl=impl, grid=grid)
            assert (delta[:, :, ~rows] == 0).all()
            assert relative_error(delta[:, :, rows], added) < CLOSE


def test_any_arrangement_serves():
    """Unequal tiles: the same numbers as the raster on tokens moved and padded by hand."""
    x, weights, grid = draw(7 * 5 * 3), projection(), Grid(7, 5, 3)
    method = replace(dit_sparse.get("sla", **SMALL), arrange=Tiles((3, 2, 2)))
    ctx = Context(grid=grid, impl="torch", weights=weights)
    plan = method.plan(QKV(*x), ctx)
    blocks = plan.layout.kv
    order, sizes = blocks.order[0, 0], blocks.sizes()[0, 0]
    assert blocks.offsets is not None and sizes.unique().numel() > 1
    q, k, v = (t[:, :, order] for t in x)
    seen = method.compute.remainder.marginal(arranged(QKV(*x), plan.layout, ctx), plan, ctx)
    seen = seen.repeat_interleave(sizes, 2).repeat_interleave(sizes, 3)
    weight = PHI["softmax"](q) @ PHI["softmax"](k).mT * seen
    linear = weight @ v / weight.sum(-1, keepdim=True)
    added = linear @ weights["proj_l.weight"].double().T + weights["proj_l.bias"]
    plain = replace(ctx, weights={}, cache={})
    delta = method(QKV(*x), ctx) - method(QKV(*x), plain)
    assert relative_error(delta[:, :, order], added) < CLOSE


@pytest.mark.parametrize("variant", ["masked", "global", "sla2"])
def test_grouped_heads_and_chunks(variant, monkeypatch):
    q, (_, k, v) = draw(heads=4)[0], draw(heads=2, seed=3)
    weights = {**projection(), "alpha": torch.rand(4, 13)}
    weights |= {f"proj_{n}.weight": torch.eye(DIM) for n in "qk"}
    out = run(q, k, v, weights, variant=variant)
    many = run(q, *(t.repeat_interleave(2, 1) for t in (k, v)), weights, variant=variant)
    assert relative_error(out, many) < CLOSE
    monkeypatch.setattr("dit_sparse.kernels.linear.SCRATCH_MB", 0)
    assert relative_error(run(q, k, v, weights, variant=variant), out) < CLOSE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["masked", "global"])
def test_low_precision(dtype, variant):
    """Beside the float64 result, no worse than twice the branch in the dtype at every rounding."""
    x = draw()
    plan = dit_sparse.get("sla", **SMALL).plan(QKV(*x), Context(impl="torch"))
    scope = "all" if variant == "global" else "rest"
    out = branch(QKV(*(t.to(dtype) for t in x)), plan.level, scope=scope)
    truth = branch(QKV(*(t.to(dtype).double() for t in x)), plan.level, scope=scope)
    # features, values, states, sums, quotient, projection, output: at most eight roundings
    unit = torch.finfo(torch.bfloat16 if dtype == torch.float16 else dtype).eps / 2
    assert out.dtype == dtype and relative_error(out, truth) < 8 * unit


def test_causal_runs_without_the_branch_only():
    q, k, v = draw()
    ctx = Context(causal=True, impl="torch", weights=projection())
    with pytest.raises(ArgumentError, match="causal"):
        dit_sparse.get("sla")(QKV(q, k, v), ctx)
    out = dit_sparse.attention(q, k, v, "sla", causal=True, keep=1.0)
    assert relative_error(out, dit_sparse.attention(q, k, v, "dense", causal=True)) < CLOSE


@pytest.mark.parametrize("weights", [None, projection()])
def test_gradients_reach_moved_tokens(weights):
    """Routing runs without gradients and shares the tensors it has moved with what follows."""
    grid = Grid(2, 6, 8, text=5, text_first=True)
    x, y = ([t.clone().requires_grad_() for t in Problem.make(grid).x] for _ in range(2))
    run(*x, weights, grid=grid).square().sum().backward()
    video = [t[:, :, 5:] for t in y]
    text = run(*y, grid=grid)[:, :, :5]
    added = oracle(*video, weights) - oracle(*video) if weights else 0
    plain = run(*y, grid=grid)[:, :, 5:]
    (text.square().sum() + (plain + added).square().sum()).backward()
    for a, b in zip(x, y, strict=True):
        assert a.grad.abs().max() > 0 and relative_error(a.grad, b.grad) < 1e-10


@pytest.mark.parametrize("scope", ["rest", "all"])
def test_sums_outgrow_float16(scope):
    """Features and values of ordinary size, whose sum over the keys is above 65504."""
    q, k, v = (8 * t.abs().half() for t in draw())
    out = branch(QKV(q, k, 4 * v), torch.zeros(1, 2, 13, 13).char(), phi="relu", scope=scope)
    assert out.isfinite().all() and (k.double().mT @ (4 * v).double()).amax() > 65504
