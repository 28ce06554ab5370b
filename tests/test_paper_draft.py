"""DraftAttention (2505.14708): the properties of its map, its selection and its reordering."""

from itertools import pairwise, product
from math import floor

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.arrange.tiles import Tiles
from dit_sparse.core import QKV, Context
from dit_sparse.kernels.permute import permute_tokens
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


@pytest.mark.parametrize("text", [0, 9])
def test_the_order_is_the_published_permutation(text):
    """Patch by patch of a frame, row by row inside; text stays, and the inverse restores all."""
    grid, (rows, cols) = Grid(3, 16, 32, text=text), PATCH
    q, k, v = draw(grid)
    blocks = dit_sparse.plan(q, k, v, "draft", grid=grid).layout.kv
    pi = [
        f * 512 + (i * rows + u) * 32 + j * cols + w
        for f, i, j, u, w in product(range(3), range(2), range(2), range(rows), range(cols))
    ]
    order = blocks.order[0, 0]
    assert order.tolist() == [*pi, *range(grid.video, grid.tokens)]
    assert (blocks.sizes()[0, 0, :12] == BLOCK).all()
    assert torch.equal(
        permute_tokens(permute_tokens(q, order[None, None]), order[None, None], inverse=True), q
    )


@pytest.mark.parametrize("rule", ["head", "row"])
@pytest.mark.parametrize("patch", [(8, 16), (3, 5), (1, 1), (64, 64)])
def test_without_sparsity_it_is_dense(patch, rule):
    grid = Grid(2, 10, 11, text=6, text_first=True)
    q, k, v = draw(grid)
    truth = dit_sparse.attention(q, k, v, "dense")
    assert relative_error(draft(q, k, v, grid, keep=1.0, patch=patch, rule=rule), truth) < 1e-12


def test_scores_are_the_softmax_of_pooled_products():
    q, k, v = draw()
    x, ctx = QKV(q, k, v), Context(grid=GRID, impl="torch")
    layout = Tiles((1, *PATCH))(x, ctx)
    order = layout.kv.order[0, 0]
    qp, kp = (t[:, :, order].unflatten(2, (12, BLOCK)).mean(3) for t in (q, k))
    draft_map = (qp @ kp.mT / 4).softmax(-1)
    score = PooledDot(softmax=True)(x, layout, ctx)
    assert torch.allclose(score, draft_map, atol=1e-12)
    assert (score.sum(-1) - 1).abs().max() < 1e-12


def test_constant_patches_make_the_draft_exact():
    """With q and k constant in each patch the draft logits are the full ones, and the draft row is
    the block sum of the full map."""
    q, k, v = draw()
    x, ctx = QKV(q, k, v), Context(grid=GRID, impl="torch")
    layout = Tiles((1, *PATCH))(x, ctx)
    order = layout.kv.order[0, 0]
    spread = torch.empty_like(order).scatter_(0, order, torch.arange(12).repeat_interleave(BLOCK))
    q, k = (t[:, :, order].unflatten(2, (12, BLOCK)).mean(3)[:, :, spread] for t in (q, k))
    logits, score = (
        PooledDot(softmax=s)(QKV(q, k, v), layout, Context(grid=GRID, impl="torch"))
        for s in (False, True)
    )
    full = (q @ k.mT / 4)[:, :, order][..., order]
    assert torch.allclose(logits, full[:, :, ::BLOCK, ::BLOCK], atol=1e-12)
    sums = full.softmax(-1).unflatten(-1, (12, BLOCK)).sum(-1)[:, :, ::BLOCK]
    assert torch.allclose(score, sums, atol=1e-12)


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.6, 1.0])
def test_kept_count_per_head(keep):
    """g^2 - k + 1 without ties, and the best block of each row that would be left empty."""
    q, k, v = draw()
    x, ctx = QKV(3 * q, k, v), Context(grid=GRID, impl="torch")
    score = PooledDot(softmax=True)(x, Tiles((1, *PATCH))(x, ctx), ctx)
    level = dit_sparse.plan(*x, "draft", grid=GRID, keep=keep).level
    dropped = floor((1 - keep) * 144 + 1e-6)
    if dropped == 0:
        assert level.all()
        return
    edge = score.flatten(2).sort(-1).values[..., dropped - 1, None, None]
    empty = (score < edge).all(-1)
    assert empty.any() or keep > 0.1, "the draw never needs the guard"
    assert torch.equal(level.flatten(2).sum(-1), 144 - dropped + 1 + empty.sum(-1))
    assert (level[score >= edge] == 1).all() and level.any(-1).all()


@pytest.mark.parametrize("rule", ["head", "row"])
def test_larger_budgets_contain_smaller_ones(rule):
    q, k, v = draw()
    levels = [
        dit_sparse.plan(q, k, v, "draft", grid=GRID, keep=keep, rule=rule).level
        for keep in (0.1, 0.2, 0.5, 0.9, 1.0)
    ]
    assert all((a <= b).all() for a, b in pairwise(levels))
    assert all(a.sum() < b.sum() for a, b in pairwise(levels))


def test_a_row_counts_its_own_share_by_rule_row():
    level = dit_sparse.plan(*draw(), "draft", grid=GRID, keep=0.25, rule="row").level
    assert (level.sum(-1) == 3).all()


def test_a_flat_row_keeps_a_block():
    """Peaked rows take the whole head's budget; the released code leaves the flat one empty."""
    q, k, v = draw()
    q = 40 * q
    q[:, :, : 8 * 32] = 1e-9 * q[:, :, : 8 * 32]
    level = dit_sparse.plan(q, k, v, "draft", grid=GRID, keep=0.03).level
    assert level.any(-1).all()
    assert draft(q, k, v, keep=0.03).abs().amin(-1).gt(0).all()


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
@pytest.mark.parametrize(
    "grid", [Grid(2, 15, 20), Grid(1, 9, 33), Grid(3, 5, 7), Grid(2, 9, 17, 5)]
)
def test_ragged_grids_equal_masked_attention(grid, rule):
    q, k, v = draw(grid)
    plan = dit_sparse.plan(q, k, v, "draft", grid=grid, rule=rule)
    assert (
        plan.level[..., : plan.layout.q.video, : plan.layout.kv.video].eq(0).any()
        or grid.height < 8
    )
    blocks, order = plan.layout.kv, plan.layout.kv.order[0, 0]
    sizes = blocks.sizes().flatten().long()
    keep = plan.level.repeat_interleave(sizes, -1).repeat_interleave(sizes, -2) == 1
    mask = torch.zeros_like(keep)
    mask[..., order[:, None], order[None, :]] = keep
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert relative_error(draft(q, k, v, grid, rule=rule), truth) < 1e-10
