"""The choices of single queries: partitions of every size, thresholds, and what they refuse."""

from math import ceil

import pytest
import torch

import dit_sparse
from dit_sparse import Context, Grid
from dit_sparse.arrange.partitions import Partitions
from dit_sparse.core import QKV
from dit_sparse.errors import ArgumentError
from dit_sparse.select.gates import GateMass
from dit_sparse.testing import Problem


@pytest.mark.parametrize("tokens", [1, 7, 200])
def test_without_a_grid(tokens):
    """Raster blocks, as many as the partition has parts."""
    x = QKV(*torch.randn(3, 1, 2, tokens, 8, dtype=torch.float64))
    for layer, parts in ((0, 8), (1, 48), (2, 72)):
        layout = Partitions()(x, Context(layer=layer))
        assert layout.kv.count == -(-tokens // layout.kv.size) <= parts
        assert layout.kv.size == ceil(tokens / parts)
    out = dit_sparse.attention(*x, "vmoba", impl="torch")
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"cycle": "14"}, "cycle='14'"),
        ({"unit": "frames"}, "unit='frames'"),
        ({"columns": (6, 0)}, "columns=(6, 0)"),
        ({"boxes": (3, 3)}, "boxes=(3, 3)"),
        ({"slabs": 2.5}, "slabs=2.5"),
        ({"scope": "row"}, "scope='row'"),
        ({"select": "top"}, "select='top'"),
        ({"tau": -0.1}, "tau=-0.1"),
        ({"k": (2, 0, 3)}, "k=(2, 0, 3)"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"unit": "tokens", "slabs": 5}, "chunk of 5 is larger than the grid's frames 4"),
        ({"unit": "tokens", "cycle": "2", "columns": (2, 8)}, "larger than the grid's width 7"),
    ],
)
def test_bad_parameters_name_themselves(params, words):
    with pytest.raises(ArgumentError) as error:
        problem = Problem.make(Grid(4, 5, 7))
        dit_sparse.get("vmoba", **params)(problem.x, problem.context())
    assert words in str(error.value) and "\n" not in str(error.value)


def test_chunks_of_tokens_are_the_paper_s_tables():
    """The published chunk sizes give the published counts; 36 frames by arithmetic, not 7."""
    for grid, chunks, blocks in (
        (Grid(24, 36, 64), (3, (6, 8), (8, 12, 8)), (8, 48, 72)),
        (Grid(21, 30, 52), (3, (5, 13), (7, 5, 13)), (7, 24, 72)),
        (Grid(21, 45, 80), (3, (9, 10), (7, 15, 20)), (7, 40, 36)),
        (Grid(36, 30, 52), (3, (5, 13), (12, 10, 13)), (12, 24, 36)),
    ):
        x = QKV(*[torch.zeros(1, 1, grid.tokens, 1)] * 3)
        arrange = Partitions("123", "tokens", *chunks)
        counts = tuple(arrange(x, Context(grid, layer=i)).kv.count for i in range(3))
        assert counts == blocks


def test_causal_is_refused():
    x = torch.randn(3, 1, 1, 8, 4)
    with pytest.raises(ArgumentError, match="causal"):
        dit_sparse.attention(*x, "vmoba", causal=True)


def test_min_max_weights_keep_about_a_fifth():
    """Min-max weights lie near a half, so tau = .25 keeps a fifth of Gaussian gates, not less."""
    layout = Partitions("2")(QKV(*[torch.zeros(1, 1, 6912, 1)] * 3), Context(Grid(9, 24, 32)))
    level = GateMass(0.25)(torch.randn(1, 1, 6912, 48), layout, Context())
    assert 0.17 < level.float().mean() < 0.22


@pytest.mark.parametrize("params", [{}, {"keep": 0.3}, {"select": "topk"}])
def test_triton_plans_are_those_of_torch(params):
    """In float32, where no two gates are equal."""
    problem = Problem.make(Grid(2, 4, 6, text=3), batch=1).to(torch.float32)
    method = dit_sparse.get("vmoba", columns=(2, 2), **params)
    plans = [method.plan(problem.x, problem.context(i, layer=1)) for i in ("torch", "triton")]
    assert torch.equal(plans[0].level, plans[1].level)
