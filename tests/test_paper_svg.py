"""SVG (2502.01776): its masks and its choice per head, against token-level oracles in float64."""

from dataclasses import replace
from itertools import product

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.arrange import frames
from dit_sparse.core import QKV, Context
from dit_sparse.errors import ArgumentError
from dit_sparse.select.per_head import band_width
from dit_sparse.testing import Problem, relative_error

GRIDS = [Grid(4, 8, 8), Grid(5, 7, 9), Grid(4, 5, 9, 11), Grid(3, 6, 10, 7, True)]
BLOCK = 16


def mask(grid, kind, keep, first_frame, block=BLOCK):
    """Return SVG's mask [S, S] in the given token order, from its definition."""
    video, patches = grid.video, grid.height * grid.width
    token = torch.arange(video)
    place = token if kind == "spatial" else token % patches * grid.frames + token // patches
    n = -(-video // block)
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    near = (i - j).abs()
    if first_frame:
        near[:, : -(-patches // block)] = 0
    text = grid.tokens**2 - video**2
    share = max(0, keep * grid.tokens**2 - text) / video**2
    w = min(range(n), key=lambda w: abs((near <= w).double().mean().item() - share))
    seen = (near <= w)[place // block][:, place // block]
    ends = (grid.text, 0) if grid.text_first else (0, grid.text)
    return torch.nn.functional.pad(seen, ends * 2, value=True)


def masked(x, seen):
    """Return softmax attention over the seen pairs, in float64."""
    logits = x.q @ x.k.mT * x.q.shape[-1] ** -0.5
    return logits.masked_fill(~seen, float("-inf")).softmax(-1) @ x.v


def local(grid, kinds, batch=1, dim=64, sharp=20.0):
    """Return q, k, v whose head h attends to its own frame (S) or its own patch (T)."""
    token, patches = torch.arange(grid.video), grid.height * grid.width
    codes = {"S": token // patches, "T": token % patches}
    q = torch.stack([torch.eye(dim, dtype=torch.float64)[codes[kind]] for kind in kinds])
    g = torch.Generator().manual_seed(3)
    v = torch.randn(batch, len(kinds), grid.video, dim, generator=g, dtype=torch.float64)
    q = q.expand(batch, -1, -1, -1)
    return QKV(q * sharp, q * sharp, v)


def temporal(x, grid, **params):
    """Return which heads of x became token-major, [B, H] bool, read from the plan's order."""
    plan = dit_sparse.plan(*x, "svg", grid=grid, **params)
    order = plan.layout.q.order[..., : grid.video]
    turned = torch.arange(grid.video).view(grid.frames, -1).T.flatten()
    is_token = (order == turned).all(-1)
    assert (is_token | (order == torch.arange(grid.video)).all(-1)).all()
    return is_token


@pytest.mark.parametrize("first_frame", [True, False])
@pytest.mark.parametrize("kind", ["spatial", "temporal"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_masks_are_the_band(grid, kind, first_frame):
    x = Problem.make(grid, heads=1).x
    method = dit_sparse.get("svg", keep=0.5, first_frame=first_frame, block=BLOCK)
    modes = {"spatial": "D", "temporal": "M"}[kind]
    method = replace(method, arrange=frames.Frames(BLOCK, lambda ctx, heads: modes * heads))
    seen = mask(grid, kind, 0.5, first_frame)
    for impl in ("reference", "torch"):
        out = dit_sparse.attention(*x, method, grid=grid, impl=impl)
        assert relative_error(out, masked(x, seen)) < 1e-12
    plan = dit_sparse.plan(*x, method, grid=grid)
    assert plan.density().item() == pytest.approx(seen.double().mean().item(), abs=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_losses_are_those_of_the_sampled_rows(grid):
    x, ctx = Problem.make(grid, heads=3).x, Context(grid=grid, step=7, steps=10)
    arrange = dit_sparse.get("svg", keep=0.5, first_frame=True, block=BLOCK, rows=10).arrange
    rows = frames.sampled_rows(grid.video, 10, 7, "cpu")
    rows = rows + (grid.text if grid.text_first else 0)
    full = masked(x, torch.ones(grid.tokens, grid.tokens, dtype=torch.bool))
    losses = arrange.losses(x, ctx)
    for loss, kind in zip(losses, ("spatial", "temporal"), strict=True):
        out = masked(x, mask(grid, kind, 0.5, True))
        truth = (out - full)[:, :, rows].square().mean((-2, -1))
        assert relative_error(loss, truth) < 1e-10
    # the second token of a token-major order is in the next frame
    order = arrange(x, ctx).q.order
    assert torch.equal(order[..., 1] != order[..., 0] + 1, losses[1] < losses[0])


@pytest.mark.parametrize("first_frame", [True, False])
@pytest.mark.parametrize("step", [0, 5])
def test_local_heads_find_their_order(first_frame, step):
    grid = Grid(8, 6, 8)
    x = local(grid, "STTS")
    params = {"keep": 0.3, "first_frame": first_frame, "block": BLOCK}
    assert temporal(x, grid, **params).tolist() == [[False, True, True, False]]
    sampled = dit_sparse.get("svg", rows=64, **params).arrange
    every = dit_sparse.get("svg", rows=grid.video, **params).arrange
    ctx = Context(grid=grid, step=step, steps=10)
    assert torch.equal(sampled(x, ctx).q.order, every(x, ctx).q.order)


def test_batch_elements_choose_for_themselves():
    grid = Grid(8, 6, 8)
    x = QKV(*(torch.cat([t, t.flip(1)]) for t in local(grid, "ST")))
    choice = temporal(x, grid, keep=0.3, block=BLOCK)
    assert choice.tolist() == [[False, True], [True, False]]


def test_the_right_order_is_near_dense():
    grid = Grid(8, 6, 8)
    x = local(grid, "ST", sharp=8.0)
    truth = dit_sparse.attention(*x, "dense")
    params = {"keep": 0.4, "first_frame": False, "block": BLOCK}
    out = dit_sparse.attention(*x, "svg", grid=grid, **params)
    wrong = replace(
        dit_sparse.get("svg", **params), arrange=frames.Frames(BLOCK, lambda ctx, heads: "MD")
    )
    worse = dit_sparse.attention(*x, wrong, grid=grid)
    # exp(8 * 8 / 8) = 2981 against 48 or 8 other tokens: what is dropped weighs little
    for h in range(2):
        good, bad = (relative_error(o[:, h], truth[:, h]) for o in (out, worse))
        assert good < 0.05 and bad > 0.5, (h, good, bad)


def test_groups_of_heads_change_no_loss(monkeypatch):
    grid = Grid(4, 5, 9, 11)
    x = Problem.make(grid, heads=6).x
    x = QKV(x.q, x.k[:, ::2], x.v[:, ::2])
    arrange, ctx = dit_sparse.get("svg", block=BLOCK).arrange, Context(grid=grid)
    whole = arrange.losses(x, ctx)
    monkeypatch.setattr("dit_sparse.kernels.losses._SCRATCH", 1)
    assert whole.shape == (2, 2, 6) and relative_error(arrange.losses(x, ctx), whole) < 1e-12


@pytest.mark.parametrize("tokens,count", [(1000, 64), (64, 64), (50, 64), (75600, 64)])
def test_rows_are_one_per_stretch(tokens, count):
    count = min(count, tokens)
    shown = set()
    for step in range(20):
        rows = frames.sampled_rows(tokens, count, step, "cpu")
        # row i shares a token with [i, i + 1) * tokens / count
        i = torch.arange(count)
        assert ((rows + 1) * count > i * tokens).all() and (rows * count < (i + 1) * tokens).all()
        assert (rows.diff() > 0).all() and rows.diff().max() <= -(-tokens // count)
        shown |= set(rows.tolist())
    assert len(shown) > min(tokens, 10 * count) * 0.9


def test_widths_are_counted():
    for n in (1, 2, 5, 12):
        i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        for first in range(n + 1):
            sizes = [(((i - j).abs() <= w) | (j < first)).sum().item() for w in range(n)]
            for share in (0.0, 0.1, 0.3, 0.55, 0.9, 1.0):
                w = band_width(share, n, first)
                assert abs(sizes[w] - share * n * n) == min(abs(s - share * n * n) for s in sizes)
                assert share < 1 or w == n - 1


def test_width_is_the_papers():
    """Half-width F (1 - sqrt(1 - keep)) frames: 75,600 tokens of Wan, 21 frames, blocks of 128."""
    n, frames_ = -(-75600 // 128), 21
    for keep in (0.1, 0.25, 0.3):
        paper = frames_ * (1 - (1 - keep) ** 0.5)
        # a block's diagonal counts as half a block on each side
        assert abs((band_width(keep, n) + 0.5) * 128 / 3600 - paper) < 128 / 3600


@pytest.mark.parametrize("keep", [0.25, 0.3, 0.6])
@pytest.mark.parametrize("first_frame", [True, False])
def test_density_is_near_keep(keep, first_frame):
    for grid in (Grid(8, 12, 16), Grid(13, 9, 11), Grid(9, 12, 12, 40), Grid(6, 16, 16, 64, True)):
        x = QKV(*torch.randn(3, 1, 1, grid.tokens, 8))
        density = dit_sparse.plan(
            *x, "svg", grid=grid, keep=keep, first_frame=first_frame, block=32, rows=1
        ).density()
        # one width more adds two diagonals; the last block may be short
        n = grid.video // 32
        assert abs(density.item() - keep) <= 2 / n, (grid, density)


def test_text_rows_and_columns_are_exact():
    grid = Grid(4, 6, 8, 9)
    x = Problem.make(grid).x
    out, truth = (
        dit_sparse.attention(*x, name, grid=grid, **params)
        for name, params in (("svg", {"block": BLOCK}), ("dense", {}))
    )
    assert relative_error(out[:, :, grid.video :], truth[:, :, grid.video :]) < 1e-12
    assert relative_error(out[:, :, : grid.video], truth[:, :, : grid.video]) > 1e-3


def test_one_frame_has_one_order():
    """Temporal = spatial, and no first frame that would be the whole image."""
    grid = Grid(1, 16, 16)
    x = QKV(*torch.randn(3, 1, 2, 256, 8))
    plan = dit_sparse.plan(*x, "svg", grid=grid, keep=0.25, first_frame=True, block=BLOCK)
    assert plan.layout.q.order is None and abs(plan.density().item() - 0.25) < 1 / 16


def test_full_budget_is_dense():
    grid = Grid(4, 5, 9, 11)
    x = Problem.make(grid).x
    out = dit_sparse.attention(*x, "svg", grid=grid, keep=1.0, block=BLOCK)
    assert relative_error(out, dit_sparse.attention(*x, "dense")) < 1e-12


def test_errors_name_what_is_wrong():
    x = QKV(*torch.randn(3, 1, 2, 64, 8))
    with pytest.raises(ArgumentError, match="grid=None"):
        dit_sparse.attention(*x, "svg")
    for name, grid in product(("svg", "sparse_vdit"), (Grid(4, 4, 4), None)):
        # no grid would help: it is not what the message names
        with pytest.raises(ArgumentError, match="causal=True"):
            dit_sparse.get(name)(x, Context(grid=grid, causal=True))
    for params in ({"keep": 0.0}, {"keep": 1.5}, {"rows": 0}, {"block": 0}, {"block": 2.5}):
        with pytest.raises(ArgumentError, match=next(iter(params))):
            dit_sparse.get("svg", **params)
