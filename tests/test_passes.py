"""The one-pass tools (pooling, moments, permutation, lists) against their oracles."""

import pytest
import torch

from dit_sparse.kernels import reference
from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.lists import dense_mask, edge_lists, pack_lists, top_blocks, top_lists
from dit_sparse.kernels.permute import Move, move_tokens, permute_tokens
from dit_sparse.kernels.pool import block_covariances, pool_blocks
from tests.kernel_cases import BOTH, DEVICE, offsets

pytestmark = pytest.mark.usefixtures("poison")


@BOTH
@pytest.mark.parametrize(
    "blocks", [16, 20, Cut(40, offsets([7, 0, 40, 1, 20, 4], 2)), Cut(30, offsets([30, 9, 13]))]
)
def test_passes(blocks, impl):
    """Pooling, moments, permutation and its inverse agree with their oracles."""
    x, v = torch.randn(2, 2, 72, 24, device=DEVICE), torch.randn(2, 2, 72, 40, device=DEVICE)
    order = torch.rand(1, 2, 72, device=DEVICE).argsort(-1).int()
    moves = Move(x, order, blocks, True, x.dtype), Move(v, None, 16, False, torch.float64)
    (moved, mean), (nothing, pooled) = move_tokens(*moves, impl=impl)
    ordered = reference.permute_tokens(x, order)
    # tokens in no block are not moved
    covered = 72 if isinstance(blocks, int) else int(blocks.offsets[..., -1].max())
    assert torch.equal(moved[:, :, :covered], ordered[:, :, :covered]) and nothing is None
    moved = permute_tokens(x, order, impl=impl)
    assert torch.equal(moved, ordered)
    torch.testing.assert_close(pooled.float(), reference.pool_blocks(v, 16))
    assert torch.equal(permute_tokens(moved, order, inverse=True, impl=impl), x)
    shared = order[:, :1]
    back = permute_tokens(permute_tokens(x, shared, impl=impl), shared, inverse=True, impl=impl)
    assert torch.equal(back, x)
    torch.testing.assert_close(mean, reference.pool_blocks(x, blocks, order))
    torch.testing.assert_close(pool_blocks(x, blocks, order, impl=impl), mean)
    part = order[..., 5:37]
    some = reference.pool_blocks(ordered[:, :, 5:37], 8)
    torch.testing.assert_close(pool_blocks(x, 8, part, impl=impl), some)
    total = pool_blocks(x, blocks, reduce="sum", impl=impl)
    torch.testing.assert_close(total, reference.pool_blocks(x, blocks, reduce="sum"))
    check_covariances(x, v, blocks, impl)


def check_covariances(k, v, blocks, impl):
    """Covariances of blocks, from their means, are the oracle's."""
    exact = reference.block_covariances(k.double(), v.double(), blocks)
    means = (pool_blocks(x, blocks, dtype=torch.float32, impl=impl) for x in (k, v))
    found = block_covariances(k, v, *means, blocks, impl=impl)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4)


@BOTH
def test_covariances(impl):
    """Also of many blocks, which several programs of a head share."""
    x, v = torch.randn(1, 2, 300, 16, device=DEVICE), torch.randn(1, 2, 300, 24, device=DEVICE)
    check_covariances(x, v, 8, impl)


@BOTH
def test_lists(impl):
    """Lists are the oracle's up to the count, at any capacity; auto on a CPU is torch."""
    chosen = torch.rand(2, 3, 5, 37, device=DEVICE) < 0.4
    for capacity in (None, 0, 5, 37):
        count, index = pack_lists(chosen, capacity, impl=impl)
        want, ids = reference.pack_lists(chosen, capacity)
        listed = torch.arange(ids.shape[-1], device=DEVICE) < want[..., None]
        assert torch.equal(count, want) and torch.equal(index, ids * listed)
        only = chosen.to(torch.int8) * 2 + ~chosen
        for level, same in ((2, (count, index)), (None, pack_lists(only != 0, capacity))):
            found = pack_lists(only, capacity, level=level, impl=impl)
            assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))
    # whatever stands past the count: unpacked, they are the choice again
    index = index.masked_fill(~listed, 1 << 20)
    assert torch.equal(dense_mask(count, index, 37), chosen)


@BOTH
def test_top_blocks(impl):
    """k of each row are kept and none of the rest is larger: signs, ties, infinities."""
    score = torch.randn(2, 3, 5, 37, device=DEVICE)
    score[0], score[1, 0, 0], score[1, 1, :, ::2] = score[0].round(), 0.0, float("-inf")
    for k in (1, 7, 25, 37):
        kept = top_blocks(score, k, impl=impl).bool()
        assert (kept.sum(-1) == k).all()
        level, count, index = top_lists(score, k, impl=impl)
        assert torch.equal(level.bool(), kept) and (count == k).all()
        assert torch.equal(dense_mask(count, index, 37), kept)
        least = score.masked_fill(~kept, float("inf")).amin(-1)
        assert (score.masked_fill(kept, float("-inf")).amax(-1) <= least).all()
    # of either sign NaN is kept, so that it shows
    score[0, 1, 2, 3], score[0, 1, 3, 4] = float("nan"), -torch.tensor(float("nan"))
    assert top_blocks(score, 1, impl=impl).bool()[score.isnan()].all()


@BOTH
def test_edge_lists(impl):
    """Kept are the scores from the edge of their head on, the best of a row, and all beside NaN."""
    score, edge = torch.randn(2, 3, 5, 37, device=DEVICE), torch.rand(2, 3, device=DEVICE)
    score[0, 0, 0], score[0, 1, 1, 2], edge[1, 1] = -score[0, 0, 0].abs() - 9, torch.nan, torch.nan
    level, count, index = edge_lists(score, edge, impl=impl)
    best = torch.nn.functional.one_hot(score.argmax(-1), 37).bool()
    want = (score >= edge[..., None, None]) | best | score.isnan() | edge.isnan()[..., None, None]
    mixed = score.isnan().any(-1)
    assert torch.equal(level.bool()[~mixed], want[~mixed]) and level.bool()[score.isnan()].all()
    assert torch.equal(dense_mask(count, index, 37), level.bool())
    assert torch.equal(index, pack_lists(level, impl="torch")[1])
