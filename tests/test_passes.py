"""The one-pass tools (pooling, moments, permutation, lists) against their oracles."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from dit_sparse.kernels import reference
from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.lists import pack_lists, top_blocks
from dit_sparse.kernels.permute import permute_tokens
from dit_sparse.kernels.pool import block_moments, pool_blocks

pytestmark = pytest.mark.usefixtures("poison")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def offsets(sizes, heads=1):
    """Return int32 offsets [1, heads, N + 1] of blocks of the given sizes, rolled by one for each
    further head."""
    rolled = [sizes[h:] + sizes[:h] for h in range(heads)]
    return torch.nn.functional.pad(torch.tensor([rolled], device=DEVICE).cumsum(-1), (1, 0)).int()


@pytest.mark.parametrize("impl", ["triton", "torch"])
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


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_lists(impl):
    """Lists are the oracle's up to the count, at any capacity; auto on a CPU is torch."""
    chosen = torch.rand(2, 3, 5, 37, device=DEVICE) < 0.4
    for capacity in (None, 0, 5, 37):
        count, index = pack_lists(chosen, capacity, impl=impl)
        want, ids = reference.pack_lists(chosen, capacity)
        listed = torch.arange(ids.shape[-1], device=DEVICE) < want[..., None]
        assert torch.equal(count, want) and torch.equal(index * listed, ids * listed)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_top_blocks(impl):
    """k of each row are kept and none of the rest is larger: signs, ties, infinities."""
    score = torch.randn(2, 3, 5, 37, device=DEVICE)
    score[0], score[1, 0, 0], score[1, 1, :, ::2] = score[0].round(), 0.0, float("-inf")
    for k in (1, 7, 25, 37):
        kept = top_blocks(score, k, impl=impl).bool()
        assert (kept.sum(-1) == k).all()
        least = score.masked_fill(~kept, float("inf")).amin(-1)
        assert (score.masked_fill(kept, float("-inf")).amax(-1) <= least).all()
