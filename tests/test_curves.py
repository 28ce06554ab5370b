"""The space-filling curve: a bijection of neighbours on any grid, built quickly and once."""

import time
from itertools import product

import pytest
import torch

from dit_sparse import Context, Grid
from dit_sparse.arrange.curves import Curve, hilbert_order
from dit_sparse.core import QKV
from dit_sparse.errors import ArgumentError

SIDES = (1, 2, 3, 4, 5, 8, 11, 14)


def place(order, height, width):
    """Return the (frame, row, column) of each token of an order, [S, 3]."""
    order = torch.as_tensor(order)
    return torch.stack([order // (height * width), order // width % height, order % width], -1)


@pytest.mark.parametrize("frames", SIDES)
def test_a_walk_of_neighbours_through_every_token(frames):
    for height, width in product(SIDES, repeat=2):
        order = hilbert_order(frames, height, width)
        assert sorted(order) == list(range(frames * height * width))
        step = place(order, height, width).diff(dim=0).abs()
        assert (step <= 1).all(), "a jump"
        diagonal = (step.sum(-1) > 1).sum()
        assert diagonal <= 0.05 * len(order) + 4
        if not any(n % 2 and n > 1 for n in (frames, height, width)):
            assert diagonal == 0, "even sides allow a walk over faces alone"


@pytest.mark.parametrize("grid", [(1, 45, 80), (13, 30, 52), (21, 45, 80), (33, 45, 80)])
def test_blocks_are_compact_and_quick_to_build(grid):
    start = time.process_time()
    order = hilbert_order(*grid)
    assert time.process_time() - start < 2
    tokens = len(order) // 128 * 128

    def spread(order):
        """Mean squared distance of a block's tokens from its centre."""
        blocks = place(order[:tokens], *grid[1:]).double().unflatten(0, (-1, 128))
        return (blocks - blocks.mean(1, keepdim=True)).square().sum(-1).mean()

    # a cube of 128 tokens has 3 (128^(2/3) - 1) / 12 = 6.1; a square 21; a row of a video 500
    bound = 1.5 * (21 if grid[0] == 1 else 6.1)
    assert spread(order) < bound < spread(list(range(len(order)))) / 5


@pytest.mark.parametrize("text_first", [False, True])
def test_layout(text_first):
    """Uniform blocks of the walk, text behind; built once per grid, also for inference mode."""
    grid = Grid(3, 5, 6, text=7, text_first=text_first)
    x, ctx = QKV(*torch.randn(3, 1, 1, grid.tokens, 8)), Context(grid=grid)
    with torch.inference_mode():
        blocks = Curve(16)(x, ctx).kv
    assert blocks is Curve(16)(x, ctx).q and not blocks.order.is_inference()
    assert blocks.sizes()[0, 0].tolist() == [16] * 5 + [10, 7]
    first = 7 if text_first else 0
    video = [i + first for i in hilbert_order(3, 5, 6)]
    text = [*range(7)] if text_first else [*range(90, 97)]
    assert blocks.order[0, 0].tolist() == video + text
    plain = Curve(16)(x, Context()).q
    assert plain.order is None and plain.count == 7


def test_neighbours_on_the_walk_are_not_far_ahead():
    """Locality the other way: most face neighbours of a video stand near on the curve."""
    sides = (8, 16, 16)
    rank = torch.empty(8 * 16 * 16, dtype=torch.long)
    rank[torch.tensor(hilbert_order(*sides))] = torch.arange(8 * 16 * 16)
    rank = rank.view(sides)
    ahead = torch.cat([rank.diff(dim=d).abs().flatten() for d in range(3)])
    assert (ahead < 64).double().mean() > 0.7
    # the raster puts the neighbours of one axis in three 256 tokens away
    raster = torch.arange(8 * 16 * 16).view(sides)
    far = torch.cat([raster.diff(dim=d).flatten() for d in range(3)])
    assert ahead.double().quantile(0.6) < far.double().quantile(0.6)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_a_compiler_takes_the_order_as_a_constant():
    grid = Grid(4, 12, 14, text=3)
    x = QKV(*torch.randn(3, 1, 1, grid.tokens, 8))
    graphs = []

    def call(q):
        blocks = Curve(32)(QKV(q, q, q), Context(grid=grid)).q
        return q[:, :, blocks.order[0, 0]]

    def backend(graph, _):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    out = torch.compile(call, fullgraph=True, backend=backend)(x.q)
    assert torch.equal(out, call(x.q)) and len(graphs) == 1
    assert len(graphs[0].graph.nodes) < 40


@pytest.mark.parametrize("block", [0, -8, 2.5, True])
def test_a_bad_block_is_named(block):
    with pytest.raises(ArgumentError, match="block="):
        Curve(block)
