"""DraftAttention (2505.14708): the properties of its map, its selection and its reordering."""

from itertools import pairwise
from math import floor

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.arrange.tiles import Tiles
from dit_sparse.core import QKV, Context
from dit_sparse.score.pooled import PooledDot
from dit_sparse.testing import relative_error

GRID = Grid(3, 16, 32)
PATCH = (8, 16)
BLOCK = PATCH[0] * PATCH[1]


def draw(grid=GRID, dim=16, seed=0, batch=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, batch, 2, grid.tokens, dim, generator=g, dtype=torch.float64).unbind(0)


def draft(q, k, v, grid=GRID, **params):
    return dit_sparse.attention(q, k, v, "draft", grid=grid, **params)


def test_blocks_are_patches_of_one_frame():
    q, k, v = draw()
    order = dit_sparse.plan(q, k, v, "draft", grid=GRID).layout.kv.order[0, 0]
    frame, row, col = order // 512, order // 32 % 16, order % 32
    region = (frame * 2 + row // 8) * 2 + col // 16
    assert torch.equal(region, torch.arange(12).repeat_interleave(BLOCK))


def test_scores_are_the_softmax_of_pooled_products():
    q, k, v = draw()
    x, ctx = QKV(q, k, v), Context(grid=GRID, impl="torch")
    layout = Tiles((1, *PATCH))(x, ctx)
    order = layout.kv.order[0, 0]
    qp, kp = (t[:, :, order].unflatten(2, (12, BLOCK)).mean(3) for t in (q, k))
    draft_map = (qp @ kp.mT / 4).softmax(-1)
    score = PooledDot(softmax=True)(x, layout, ctx)
    assert torch.allclose(score.double(), draft_map, atol=1e-6)
    assert (score.sum(-1) - 1).abs().max() < 1e-5


def test_constant_patches_make_the_draft_exact():
    """With q and k constant in each patch the draft row is the block sum of the full map."""
    q, k, v = draw()
    x, ctx = QKV(q, k, v), Context(grid=GRID, impl="torch")
    layout = Tiles((1, *PATCH))(x, ctx)
    order = layout.kv.order[0, 0]
    spread = torch.empty_like(order).scatter_(0, order, torch.arange(12).repeat_interleave(BLOCK))
    q, k = (t[:, :, order].unflatten(2, (12, BLOCK)).mean(3)[:, :, spread] for t in (q, k))
    score = PooledDot(softmax=True)(QKV(q, k, v), layout, Context(grid=GRID, impl="torch"))
    full = (q @ k.mT / 4).softmax(-1)[:, :, order][..., order]
    sums = full.unflatten(-1, (12, BLOCK)).sum(-1)[:, :, ::BLOCK]
    assert torch.allclose(score.double(), sums, atol=1e-6)


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.6, 1.0])
def test_kept_count_per_head(keep):
    q, k, v = draw()
    level = dit_sparse.plan(q, k, v, "draft", grid=GRID, keep=keep).level
    dropped = floor((1 - keep) * 144 + 1e-6)
    score_rule = level.flatten(-2).sum(-1)
    # the row guard may add at most one block a row
    least = 144 - dropped + (1 if dropped else 0)
    assert (score_rule >= least).all() and (score_rule <= least + 12).all()


def test_larger_budgets_contain_smaller_ones():
    q, k, v = draw()
    levels = [dit_sparse.plan(q, k, v, "draft", grid=GRID, keep=k_).level for k_ in (0.1, 0.2, 0.5)]
    assert all((a <= b).all() for a, b in pairwise(levels))


def test_text_queries_are_dense_and_text_is_always_seen():
    grid = Grid(2, 16, 32, text=40)
    q, k, v = draw(grid)
    truth = dit_sparse.attention(q, k, v, "dense")
    out = draft(q, k, v, grid, keep=0.1)
    assert relative_error(out[:, :, grid.video :], truth[:, :, grid.video :]) < 1e-12
    assert relative_error(out[:, :, : grid.video], truth[:, :, : grid.video]) > 1e-3


def test_shuffling_inside_patches_keeps_the_mask():
    q, k, v = draw()
    order = dit_sparse.plan(q, k, v, "draft", grid=GRID).layout.kv.order[0, 0]
    shuffle = torch.cat([torch.randperm(BLOCK) + i * BLOCK for i in range(12)])
    move = torch.empty_like(order).scatter_(0, order, order[shuffle])
    moved = [t[:, :, move] for t in (q, k, v)]
    first, second = (dit_sparse.plan(*x, "draft", grid=GRID).level for x in ((q, k, v), moved))
    assert torch.equal(first, second)
    assert relative_error(draft(*moved), draft(q, k, v)[:, :, move]) < 1e-10


def test_branches_in_one_batch_equal_two_calls():
    q, k, v = draw(batch=2)
    both = draft(q, k, v)
    for i in range(2):
        alone = draft(*(t[i : i + 1] for t in (q, k, v)))
        assert relative_error(alone, both[i : i + 1]) < 1e-12


@pytest.mark.parametrize("rule", ["head", "row"])
@pytest.mark.parametrize("grid", [Grid(2, 15, 20), Grid(1, 9, 33), Grid(3, 5, 7)])
def test_ragged_grids_equal_masked_attention(grid, rule):
    q, k, v = draw(grid)
    plan = dit_sparse.plan(q, k, v, "draft", grid=grid, rule=rule)
    blocks, order = plan.layout.kv, plan.layout.kv.order[0, 0]
    sizes = blocks.sizes().flatten().long()
    keep = plan.level.repeat_interleave(sizes, -1).repeat_interleave(sizes, -2) == 1
    mask = torch.zeros_like(keep)
    mask[..., order[:, None], order[None, :]] = keep
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert relative_error(draft(q, k, v, grid, rule=rule), truth) < 1e-10
