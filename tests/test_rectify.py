"""The parts of Rectified SpaAttn: the neighbour table, the floor of the selection, the kernels."""

from dataclasses import replace
from functools import lru_cache
from itertools import product

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.arrange.curves import Curve
from dit_sparse.arrange.raster import Raster
from dit_sparse.core import QKV, Blocks, Context, Layout
from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.rectify import block_spread, gate_blocks
from dit_sparse.select import floor
from dit_sparse.select.floor import FloorTopP, neighbour_table
from dit_sparse.testing import Problem, relative_error

GRIDS = [
    Grid(3, 4, 5), Grid(2, 6, 8, text=9), Grid(2, 5, 9, text=6, text_first=True), Grid(1, 1, 40)
]  # fmt: skip


def touching(cuts, grid):
    """Return by loops over voxels which of the blocks (lists of tokens) meet, [M, M] bool."""
    owner = {}
    for i, tokens in enumerate(cuts):
        for token in (tokens - (grid.text if grid.text_first else 0)).tolist():
            owner[token // (grid.height * grid.width), token // grid.width % grid.height,
                  token % grid.width] = i  # fmt: skip
    table = torch.zeros(len(cuts), len(cuts), dtype=torch.bool)
    for (t, h, w), i in owner.items():
        for a, b, c in product((-1, 0, 1), repeat=3):
            j = owner.get((t + a, h + b, w + c))
            if j is not None:
                table[i, j] = True
    return table


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("size", [7, 16])
def test_neighbours_equal_a_search_by_voxel(grid, size):
    for arrange in (Curve(size), Raster(size)):
        blocks = arrange(QKV(*torch.zeros(3, 1, 1, grid.tokens, 1)), Context(grid)).q
        tokens = torch.arange(grid.tokens) if blocks.order is None else blocks.order[0, 0]
        cuts = tokens[: grid.video].split(size)
        table = neighbour_table(blocks, blocks, grid)[0, 0]
        assert torch.equal(table > 0, touching(cuts, grid)) and torch.equal(table, table.mT)
        assert torch.equal(table == 2, torch.eye(len(cuts), dtype=torch.bool))
        # two cuts of one video, and an order of each head
        other = Blocks.with_text(grid, 11)
        mixed = neighbour_table(blocks, other, grid)
        assert torch.equal(mixed, neighbour_table(other, blocks, grid).mT)
        if blocks.order is not None:
            heads = replace(blocks, order=torch.cat([blocks.order, blocks.order], 1))
            assert torch.equal(neighbour_table(heads, heads, grid)[0, 1], table)
        opens = torch.stack(
            [
                (c - (grid.text if grid.text_first else 0) < grid.height * grid.width).any()
                for c in cuts
            ]
        )
        first = neighbour_table(blocks, blocks, grid, first_frame=True)[0, 0] > 0
        square = opens & opens[:, None] if grid.frames > 1 else torch.zeros_like(first)
        assert torch.equal(first, (table > 0) | square)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("neighbours", ["union", "within", "none"])
def test_what_is_kept(grid, neighbours):
    """The floor, the mass, the own block and its neighbours; "within" keeps the budget exactly."""
    blocks = Blocks.with_text(grid, 8)
    n = blocks.video
    logits = 3 * torch.randn(2, 2, n, n + 1)
    # without text its share is 0
    logits[..., n] -= 0 if grid.text else float("inf")
    share = logits.softmax(-1)[..., :n]
    near = neighbour_table(blocks, blocks, grid)[0, 0]
    for keep, p_remain in ((0.25, 0.0), (0.25, 0.6), (0.6, 0.3), (0.01, 0.0), (1.0, 0.0)):
        select = FloorTopP(keep, p_remain, neighbours)
        level = select(share, Layout(blocks, blocks), Context(grid)) == 1
        # the text block is exact: it counts as kept where it is
        taken = 1 if grid.text else 0
        count = level.sum(-1)
        assert (count >= max(1, int(keep * n) - taken)).all() and level.any(-1).all()
        assert (1 - (share * ~level).sum(-1) > p_remain).all() or not p_remain
        if neighbours != "none":
            assert level[..., torch.arange(n), torch.arange(n)].all()
        if neighbours == "union":
            assert (level | (near == 0)).all()
        if neighbours == "within" and p_remain == 0.0:
            assert (count <= max(1, int(keep * n))).all()
        assert keep < 1 or level.all()


@pytest.mark.parametrize("arrange", [Curve(8), Raster(8)], ids=repr)
@pytest.mark.parametrize("grid", [None, Grid(3, 4, 5)], ids=str)
def test_neighbours_are_found_once(arrange, grid, monkeypatch):
    """The second call of a shape builds no table, with a grid and without."""
    monkeypatch.setattr(floor, "_cached", lru_cache(neighbour_table))
    x, ctx = QKV(*torch.randn(3, 1, 1, 60, 4)), Context(grid)
    for _ in range(2):
        FloorTopP(0.5)(torch.rand(1, 1, 8, 8), arrange(x, ctx), ctx)
    assert floor._cached.cache_info()[:2] == (1, 1)


def test_equal_density_by_keep():
    """The setting for comparisons at equal density: what is measured is `keep`."""
    problem = Problem.make(Grid(4, 16, 16))
    for keep in (0.5, 0.25, 0.125):
        plan = dit_sparse.plan(
            *problem.x, "rectified", grid=problem.grid, keep=keep, block=32, p_remain=0.0,
            neighbours="within",
        )  # fmt: skip
        assert plan.density().item() == pytest.approx(keep, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [16, 20, 160, [7, 0, 40, 1, 20, 4], [30, 9, 13]], ids=str)
def test_kernels(sizes, dtype, poison):
    """The Triton passes equal torch: equal blocks, blocks of any size, tokens in no block."""
    tokens, device = 72, "cuda" if torch.cuda.is_available() else "cpu"
    cut = sizes
    if not isinstance(sizes, int):
        ends = torch.nn.functional.pad(torch.tensor(sizes).cumsum(0), (1, 0))
        cut = Cut(max(sizes), ends.int()[None, None].to(device))
    if sizes == 160:
        tokens = 200
    x = torch.randn(2, tokens, 3, 24, device=device, dtype=dtype).transpose(1, 2)
    exact = block_spread(x.double(), cut)
    for impl in ("torch", "triton"):
        for got, want in zip(block_spread(x, cut, impl=impl), exact, strict=True):
            assert got.dtype == torch.float32 and relative_error(got, want) < 1e-6
    # the last tokens belong to no block, as text does
    covered = tokens - 5 if isinstance(sizes, int) else sum(sizes)
    kept = -(-covered // sizes) if isinstance(sizes, int) else len(sizes)
    gate, shift = torch.rand_like(exact[0][..., 0]).float(), torch.randn_like(exact[0]).float()
    gate, shift = gate[:, :, :kept], shift[:, :, :kept]
    start = torch.tensor(sizes).cumsum(0).tolist() if not isinstance(sizes, int) else None
    want = x.double()
    for i in range(kept):
        span = slice(*((i * sizes, min((i + 1) * sizes, covered)) if start is None else
                       (start[i] - sizes[i], start[i])))  # fmt: skip
        want[:, :, span] = gate[:, :, i, None, None] * want[:, :, span] + shift[:, :, i, None]
    for impl in ("torch", "triton"):
        got = gate_blocks(x.clone(), gate, shift, cut, covered, impl=impl)
        assert got.dtype == dtype and torch.equal(got[:, :, covered:], x[:, :, covered:])
        assert relative_error(got, want) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("grid", [Grid(2, 5, 7, text=6), Grid(2, 4, 8)], ids=str)
def test_method_in_triton(grid, poison):
    """The whole method with its kernels equals the reference form in float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = [t.float().to(device) for t in Problem.make(grid, batch=1).x]
    few = {"block": 16, "keep": 0.3, "p_remain": 0.0, "neighbours": "none", "rectify": "ipar"}
    outs = [
        dit_sparse.attention(*x, "rectified", grid=grid, impl=i, **few)
        for i in ("reference", "triton")
    ]
    assert relative_error(outs[1], outs[0]) < 1e-5
