"""The layer probe against exact attention in float64, on whole sequences and on sampled rows."""

from dataclasses import replace

import pytest
import torch

from dit_sparse.core import QKV, Context, Grid
from dit_sparse.errors import ArgumentError, BrokenOutputError
from dit_sparse.quality import probe
from dit_sparse.quality.budget import calibrate
from dit_sparse.quality.watch import watching
from dit_sparse.registry import get
from dit_sparse.select.topk import TopK
from tests.probe import DRAFT, quiet, run
from tests.tiny_wan import tiny_wan

GRIDS = (Grid(3, 4, 6), Grid(3, 4, 5, text=7), Grid(2, 5, 6, text=5, text_first=True))
# raster blocks, tiles, clusters, pooled levels, a choice of every query, frames turned around
METHODS = {
    "draft": {"keep": 0.3, "patch": (3, 2)},
    "pisa": {"keep": 0.3},
    "svg2": {"q_clusters": 5, "k_clusters": 6, "top_p": 0.6, "cold_iters": 3},
    "psa": {"block": (8, 8), "keep": 0.3},
    "vmoba": {"slabs": 2},
    "svg": {"keep": 0.4},
}


def call(grid, name, params, heads=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    size = (2, heads, grid.tokens, 16)
    x = QKV(*(torch.randn(size, generator=g, dtype=dtype) for _ in range(3)))
    ctx = Context(grid=grid, layer=2, step=20, steps=50)
    method = get(name, **params)
    plan = method.plan(x, ctx)
    return x, plan, method.compute(x, plan, ctx), ctx


def exact(x, scale=None, causal=False):
    """Return the weights [B, H, Sq, Skv] in float64."""
    q, k, _ = (t.double() for t in x)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), float("-inf"))
    return logits.softmax(-1)


def token_level(plan, heads):
    """Return the level of every query-key pair in the given order, by repeating blocks."""
    batch = plan.level.shape[0]
    found = []
    for b in range(batch):
        for h in range(heads):
            level = plan.level[b, h]
            for axis, blocks in enumerate(plan.layout):
                sizes = blocks.sizes(heads=heads)
                sizes = sizes[min(b, len(sizes) - 1)]
                level = level.repeat_interleave(sizes[min(h, len(sizes) - 1)], axis)
                if blocks.order is not None:
                    order = blocks.order[min(b, len(blocks.order) - 1)]
                    order = order[min(h, len(order) - 1)]
                    level = level.index_select(axis, order.argsort())
            found.append(level)
    return torch.stack(found).unflatten(0, (batch, heads))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_all_rows_equal_the_oracle(grid, name):
    x, plan, out, ctx = call(grid, name, METHODS[name])
    got = probe.read(x, plan, out, ctx, count=grid.tokens)
    p = exact(x)
    true = p @ x.v.double()
    off = (out.double() - true).flatten(2).norm(dim=-1)
    error = off / true.flatten(2).norm(dim=-1)
    joint = (out.double() - true).flatten(1).norm(dim=-1) / true.flatten(1).norm(dim=-1)
    torch.testing.assert_close(got.error.double(), error, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.joint.double(), joint, rtol=1e-4, atol=1e-6)
    level = token_level(plan, x.q.shape[1])
    for share, kind in ((got.exact, level == 1), (got.pooled, level > 1)):
        want = (p * kind).sum(-1).mean(-1)
        torch.testing.assert_close(share.double(), want, rtol=1e-4, atol=1e-6)


def test_causal_heads_that_share_keys():
    g = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, h, 40, 16, generator=g) for h in (4, 2, 2))
    x, ctx = QKV(q, k, v), Context(causal=True, step=20, steps=50)
    plan = get("draft", **DRAFT, rule="row").plan(x, ctx)
    p = exact(x, causal=True)
    true = p @ v.double().repeat_interleave(2, 1)
    sample = probe.Sample.of(x, ctx, 40)
    torch.testing.assert_close(sample.out.double(), true, rtol=1e-4, atol=1e-6)
    want = (p * (token_level(plan, 4) == 1)).sum(-1).mean(-1)
    torch.testing.assert_close(sample.kept(plan)[0].double(), want, rtol=1e-4, atol=1e-6)


def test_sampled_rows_are_rows_of_all():
    x, _, out, ctx = call(GRIDS[1], "draft", METHODS["draft"])
    sample = probe.Sample.of(x, ctx, 9)
    assert len(sample.rows) == 9
    true = (exact(x) @ x.v.double())[:, :, sample.rows]
    off = (out.double()[:, :, sample.rows] - true).flatten(2).norm(dim=-1)
    want = off / true.flatten(2).norm(dim=-1)
    torch.testing.assert_close(sample.error(out).double(), want, rtol=1e-4, atol=1e-6)


def test_everything_kept_has_no_error():
    x, _, _, ctx = call(GRIDS[2], "draft", METHODS["draft"])
    method = replace(get("draft", **DRAFT), select=TopK(1.0))
    plan = method.plan(x, ctx)
    got = probe.read(x, plan, method.compute(x, plan, ctx), ctx)
    assert got.error.max() < 1e-5 and got.exact.min() > 1 - 1e-5 and got.pooled.max() == 0


def test_memory_is_bounded(monkeypatch):
    """Never more logits at once than the scratch allows; the numbers do not depend on it."""
    x, plan, out, ctx = call(GRIDS[0], "psa", METHODS["psa"])
    whole = probe.read(x, plan, out, ctx, count=32)
    limit = 3 * x.q.shape[0] * x.q.shape[1] * x.k.shape[2]
    monkeypatch.setattr(probe, "SCRATCH", limit)
    rows = probe.spread(72, 32, x.q.device)
    assert all(p.numel() <= limit for _, p in probe.weights(x, rows, ctx))
    for a, b in zip(probe.read(x, plan, out, ctx, count=32), whole, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("tokens", "count"), [(1, 64), (64, 64), (65, 64), (1000, 64), (7, 3)])
def test_rows_are_spread(tokens, count):
    rows = probe.spread(tokens, count, torch.device("cpu"))
    n = min(tokens, count)
    assert len(rows) == n
    for i, row in enumerate(rows.tolist()):
        assert i * tokens // n <= row < (i + 1) * tokens // n


def test_a_generation_is_watched():
    """Every sparse call is seen once, dense ones are not, and nothing changes by looking."""
    import dit_sparse

    pipe = quiet(tiny_wan())
    with pytest.raises(ArgumentError, match="not enabled"), watching(pipe, print):
        pass
    dit_sparse.enable(pipe, "draft", **{**DRAFT, "dense_steps": 1})
    before = run(pipe)
    ledger = probe.Ledger()
    with watching(pipe, ledger):
        after = run(pipe)
    assert torch.equal(before, after)
    calls = sum(len(found) for found in ledger.found.values())
    report = dit_sparse.report(pipe)
    assert calls == report.sparse_calls == report.calls * 2 // 3
    layers = ledger.layers()["transformer"]
    assert set(layers) == {"0", "1"} and set(ledger.means()) == {"error", "recall", "pooled"}
    for key, value in ledger.means().items():
        assert value == pytest.approx(sum(layer[key] for layer in layers.values()) / 2, abs=1e-6)
    run(pipe)
    assert calls == sum(len(found) for found in ledger.found.values())


def test_a_reading_that_is_not_finite_names_its_layer():
    ledger = probe.Ledger()
    for layer, error in enumerate((0.1, float("nan"))):
        ledger.found["transformer", layer, 0] = [torch.tensor([error, 0.5, 0.0])]
    with pytest.raises(BrokenOutputError, match="layer 1 of transformer: attention error is nan"):
        ledger.layers()


def test_a_budget_is_found():
    tried = []

    def measure(keep):
        # steps of a tenth, and a tenth more than was asked for
        tried.append(keep)
        return min(1.0, 0.1 + round(keep, 1))

    found = calibrate(0.4, measure)
    assert found.density == pytest.approx(0.4) and found.keep == pytest.approx(0.3, abs=0.05)
    assert len(tried) <= 4 and calibrate(0.25, lambda keep: 0.9).density == 0.9
