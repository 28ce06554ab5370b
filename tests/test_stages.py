"""The nouns and the stages by themselves."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import dit_sparse
from dit_sparse.arrange.raster import Raster
from dit_sparse.arrange.tiles import Tiles
from dit_sparse.compute.attend import Attend
from dit_sparse.core import QKV, Blocks, Context, Grid, Layout, Method, Plan
from dit_sparse.errors import ArgumentError
from dit_sparse.registry import entry
from dit_sparse.schedule import Schedule
from dit_sparse.score.pooled import PooledDot
from dit_sparse.select.topk import HeadTopK, TopK
from dit_sparse.testing import Problem, of_phase, relative_error


def layout_of(arrange, grid):
    return arrange(Problem.make(grid, batch=1, heads=1, dim=8).x, Context(grid=grid))


@pytest.mark.parametrize(
    "grid", [Grid(4, 8, 8), Grid(5, 9, 13), Grid(2, 3, 4, 7), Grid(3, 6, 6, 5, True)]
)
def test_tiles_hold_boxes(grid):
    blocks = layout_of(Tiles((2, 4, 4)), grid).kv
    order = blocks.order[0, 0, : grid.video] - (grid.text if grid.text_first else 0)
    t, rest = order // (grid.height * grid.width), order % (grid.height * grid.width)
    place = torch.stack([t, rest // grid.width, rest % grid.width], -1)
    bounds = blocks.bounds()[0, 0]
    for a, b in pairwise(bounds[: blocks.video + 1]):
        low, high = place[a:b].amin(0), place[a:b].amax(0)
        assert (high - low < torch.tensor([2, 4, 4])).all()
        assert (high - low + 1).prod() == b - a, "a block is no full box"


@pytest.mark.parametrize("grid", [Grid(4, 8, 8), Grid(5, 9, 13), Grid(2, 3, 4, 7), Grid(1, 1, 5)])
def test_uniform_tiles_keep_the_order_in_equal_blocks(grid):
    boxes, equal = (layout_of(Tiles((2, 4, 4), uniform=u), grid).kv for u in (False, True))
    assert torch.equal(boxes.order, equal.order)
    sizes = equal.sizes()[0, 0, : equal.video]
    assert (sizes[:-1] == 32).all() and sizes.sum() == grid.video


def test_queries_of_uniform_tiles_have_a_size_of_their_own():
    """In the order of the keys; text stays behind, in blocks of its own."""
    rows, cols = layout_of(Tiles((2, 4, 4), uniform=True, queries=64), Grid(4, 8, 8, text=9))
    assert torch.equal(rows.order, cols.order)
    assert rows.sizes()[0, 0].tolist() == [64] * 4 + [9]
    assert cols.sizes()[0, 0].tolist() == [32] * 8 + [9]
    for wrong in ({"queries": 0}, {"queries": 1.5}, {"queries": 64, "uniform": False}):
        with pytest.raises(ArgumentError, match="queries="):
            Tiles(**{"uniform": True, **wrong})


def test_text_stands_behind_the_video():
    blocks = layout_of(Raster(8), Grid(1, 3, 5, text=10, text_first=True)).q
    assert blocks.order[0, 0].tolist() == [*range(10, 25), *range(10)]
    assert blocks.bounds()[0, 0].tolist() == [0, 8, 15, 23, 25] and blocks.text_blocks == 2


@pytest.mark.parametrize("sq,skv,size", [(10, 10, 4), (7, 20, 4), (16, 16, 8)])
def test_causal_pairs_are_counted(sq, skv, size):
    layout = Layout(Blocks.uniform(sq, size), Blocks.uniform(skv, size))
    m, n = layout.q.count, layout.kv.count
    plan = Plan(layout, torch.ones(1, 1, m, n, dtype=torch.int8), causal=True)
    mask = torch.ones(sq, skv).tril(skv - sq)
    rows = [r.sum(0) for r in mask.split(size)]
    counted = torch.stack([torch.stack([c.sum() for c in r.split(size)]) for r in rows])
    assert torch.equal(plan.pairs()[0, 0], counted.long())


@pytest.mark.parametrize("sq,skv", [(40, 40), (13, 40)])
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_causal_dense_limit(sq, skv, impl):
    """A causal method at full budget is causal attention aligned to the end of the keys."""
    g = torch.Generator().manual_seed(1)
    q = torch.randn(1, 4, sq, 16, generator=g, dtype=torch.float64)
    k, v = torch.randn(2, 1, 2, skv, 16, generator=g, dtype=torch.float64)
    method = Method(Raster(8), PooledDot(), TopK(1.0), Attend())
    out = dit_sparse.attention(q, k, v, method, causal=True, impl=impl)
    truth = dit_sparse.attention(q, k, v, "dense", causal=True)
    assert relative_error(out, truth) < 1e-12


@pytest.mark.parametrize("name,params", [("pisa", {"order": 0}), ("draft", {"rule": "row"})])
def test_causal_sees_no_future(name, params):
    g = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 1, 2, 300, 16, generator=g)
    first = dit_sparse.attention(q, k, v, name, causal=True, **params)
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 290:] += 3
    v2[:, :, 290:] += 3
    second = dit_sparse.attention(q, k2, v2, name, causal=True, **params)
    assert torch.allclose(first[:, :, :256], second[:, :, :256], atol=1e-6)


def test_a_threshold_of_a_whole_head_is_not_causal():
    q = k = v = torch.randn(1, 2, 300, 16)
    with pytest.raises(ArgumentError, match="rule='row'"):
        dit_sparse.attention(q, k, v, "draft", causal=True)


@pytest.mark.parametrize("name", of_phase(""))
def test_nan_in_gives_nan_out(name):
    """A NaN must show in the output, or a black video would pass for a video."""
    q, k, v = torch.randn(3, 1, 2, 256, 16)
    q[0, 0, 5, 0] = float("nan")
    assert dit_sparse.attention(q, k, v, name, grid=Grid(2, 8, 16))[0, 0, 5].isnan().all()


def test_inference_mode_leaves_nothing_behind():
    """Orders built under inference mode serve a later call that wants gradients."""
    grid = Grid(2, 5, 16)
    with torch.inference_mode():
        dit_sparse.attention(*torch.randn(3, 1, 2, 160, 16), "pisa", grid=grid)
    q, k, v = torch.randn(3, 1, 2, 160, 16).requires_grad_().unbind(0)
    dit_sparse.attention(q, k, v, "pisa", grid=grid).sum().backward()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("name", of_phase(""))
@pytest.mark.parametrize("grid", [Grid(2, 8, 16), Grid(2, 7, 9, text=5)])
def test_a_whole_method_is_one_graph(name, grid):
    graphs = []
    q, k, v = torch.randn(3, 1, 2, grid.tokens, 16)
    found = entry(name)
    # k-means iterations are unrolled in the graph
    params = {"keep": 0.4, "cold_iters": 2}
    method = found.build(**{k: v for k, v in params.items() if k in found.parameters})

    def call(q, k, v):
        return dit_sparse.attention(q, k, v, method, grid=grid)

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    out = torch.compile(call, fullgraph=True, backend=backend)(q, k, v)
    assert len(graphs) == 1 and relative_error(out, call(q, k, v)) < 1e-6


def test_a_context_may_be_used_again():
    ctx, method = Context(grid=Grid(2, 8, 8)), dit_sparse.get("pisa", keep=0.3)
    first, second = (QKV(*torch.randn(3, 1, 2, 128, 16)) for _ in range(2))
    method(first, ctx)
    assert torch.equal(method(second, ctx), method(second, Context(grid=Grid(2, 8, 8))))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_explicit_triton_never_falls_back(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    q = k = v = torch.randn(1, 2, 128, 16)
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        dit_sparse.attention(q, k, v, "pisa", impl="triton")


def test_topk_counts():
    score = torch.randn(2, 3, 7, 100)
    for keep, count in ((0.29, 29), (0.001, 1), (1.0, 100)):
        assert (TopK(keep)(score, None, Context()).sum(-1) == count).all()


def test_head_topk_is_nested_and_leaves_no_row_empty():
    score = torch.randn(2, 3, 20, 20).softmax(-1)
    score[:, :, 4] = 1 / 20  # a flat row loses every block to the threshold
    masks = [HeadTopK(keep)(score, None, Context()) for keep in (0.05, 0.2, 0.5, 1.0)]
    assert all((a <= b).all() for a, b in pairwise(masks))
    assert all(m.any(-1).all() for m in masks) and masks[-1].all()


@pytest.mark.parametrize(
    "schedule,layer,step,kind",
    [
        (Schedule(), 0, 0, "sparse"),
        (Schedule(dense_steps=2), 5, 1, "dense"),
        (Schedule(dense_steps=2), 5, 2, "sparse"),
        (Schedule(dense_steps=0.25), 0, 2, "dense"),
        (Schedule(dense_steps=0.25), 0, 3, "sparse"),
        (Schedule(dense_layers=1), 0, 9, "dense"),
        (Schedule(dense_layers=(3,)), 3, 9, "dense"),
        (Schedule(dense_layers=(3,)), 2, 9, "sparse"),
    ],
)
def test_schedule(schedule, layer, step, kind):
    assert schedule.at(layer, step, 12) == kind


def test_method_is_a_value():
    a = dit_sparse.get("pisa", keep=0.2)
    assert a == dit_sparse.get("pisa", keep=0.2) != dit_sparse.get("pisa", keep=0.3)
    assert replace(a, schedule=Schedule(2)) != a
    assert QKV(1, 2, 3).k == 2
