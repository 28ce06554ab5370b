"""The one-pass tools (pooling, moments, permutation, lists) against their oracles."""

import pytest
import torch

from dit_sparse.kernels import reference
from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.lists import dense_mask, pack_lists, top_blocks
from dit_sparse.kernels.permute import permute_tokens
from dit_sparse.kernels.pool import block_moments, pool_blocks
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
    moved, mean = permute_tokens(x, order, blocks=blocks, impl=impl)
    assert torch.equal(moved, reference.permute_tokens(x, order))
    assert torch.equal(permute_tokens(moved, order, inverse=True, impl=impl), x)
    shared = order[:, :1]
    back = permute_tokens(permute_tokens(x, shared, impl=impl), shared, inverse=True, impl=impl)
    assert torch.equal(back, x)
    torch.testing.assert_close(mean, reference.pool_blocks(x, blocks, order))
    torch.testing.assert_close(pool_blocks(x, blocks, order, impl=impl), mean)
    total = pool_blocks(x, blocks, reduce="sum", impl=impl)
    torch.testing.assert_close(total, reference.pool_blocks(x, blocks, reduce="sum"))
    exact = reference.block_moments(x.double(), v.double(), blocks)
    for a, b in zip(block_moments(x, v, blocks, impl=impl), exact, strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-4)


@BOTH
def test_lists(impl):
    """Lists are the oracle's up to the count, at any capacity; auto on a CPU is torch."""
    chosen = torch.rand(2, 3, 5, 37, device=DEVICE) < 0.4
    for capacity in (None, 0, 5, 37):
        count, index = pack_lists(chosen, capacity, impl=impl)
        want, ids = reference.pack_lists(chosen, capacity)
        listed = torch.arange(ids.shape[-1], device=DEVICE) < want[..., None]
        assert torch.equal(count, want) and torch.equal(index * listed, ids * listed)
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
        least = score.masked_fill(~kept, float("inf")).amin(-1)
        assert (score.masked_fill(kept, float("-inf")).amax(-1) <= least).all()
