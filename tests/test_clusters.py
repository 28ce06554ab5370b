"""K-means, the blocks it makes, against oracles in float64."""

from itertools import pairwise

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.arrange.clusters import Clusters, _spread
from dit_sparse.arranged import arranged, restored
from dit_sparse.core import QKV, Context
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.kmeans import assign, kmeans
from dit_sparse.kernels.pool import pool_blocks
from tests.kernel_cases import BOTH, DEVICE, normal

pytestmark = pytest.mark.usefixtures("poison")


def labels_of(order, offsets):
    """Return the label of every token, int64 [B, H, S], from its place in the sorted order."""
    count = offsets.shape[-1] - 1
    place = torch.stack(
        [
            torch.arange(count, device=order.device).repeat_interleave(n)
            for n in offsets.diff().reshape(-1, count)
        ]
    )
    return torch.empty_like(order).scatter_(-1, order, place.view(order.shape))


def excess(x, c, found):
    """Return how far each token's centroid is beyond the nearest, squared, and how far rounding may
    lead, both [B, H, S] float64.

    Products of two 2-byte numbers are exact in float32; those of float32 err by 2^-22 at most. A
    score sums dim of them and half of 1.01 |x|^2 and of |c|^2, each addition cut off (not rounded)
    at 2^-23 of at most (|x| + |c|)^2 / 2; then its last 6 bits give way to the column. A distance
    is twice a score, and two distances are compared.
    """
    x, c = x.double(), c.double()
    far = torch.cdist(x, c).square()
    taken = far.gather(-1, found[..., None])[..., 0]
    square = x.square().sum(-1)
    size = (square.sqrt() + c.norm(dim=-1).amax(-1, keepdim=True)).square()
    summed = (x.shape[-1] + 2) * 2**-23 * 1.01 * size
    cut = 2**6 * 2**-23 * (taken + square / 128)
    return taken - far.amin(-1), 2 * summed + 2 * cut


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "tokens,clusters,dim", [(150, 37, 24), (1, 1, 16), (70, 70, 40), (40, 150, 128)]
)
def test_assign_takes_the_nearest(impl, dtype, tokens, clusters, dim):
    x, c = normal(1, 2, tokens, dim).to(dtype), normal(1, 2, clusters, dim, seed=1).to(dtype)
    c[:, :, -1] = c[:, :, 0]
    found = assign(x, c, impl=impl)
    over, bound = excess(x, c, found)
    assert (over <= bound).all()
    assert clusters == 1 or (found != clusters - 1).all(), "a tie goes to the first"


@BOTH
def test_near_ties_are_within_rounding(impl):
    """Centroids in one place but for the last bits, near the tokens and far from them."""
    x = normal(1, 3, 100, 64).bfloat16()
    noise = normal(1, 3, 40, 64, seed=1)
    for scale in (1e-3, 1e-2, 1.0):
        c = (x[:, :, :1].double() + scale * noise).bfloat16()
        over, bound = excess(x, c, assign(x, c, impl=impl))
        assert (over <= bound).all()
    # halfway between two of unlike length
    c = (noise[:, :, :2] * noise.new_tensor([[1.0], [4.0]])).bfloat16()
    half = (c.double().mean(2, keepdim=True) + 1e-3 * normal(1, 3, 100, 64)).bfloat16()
    over, bound = excess(half, c, assign(half, c, impl=impl))
    assert (over <= bound).all()
    # all in one place: the first
    zero = torch.zeros_like(x)
    one = x[:, :, :1].expand_as(x)
    for some, c in ((zero, zero), (x, one), (zero, one)):
        assert (assign(some, c, impl=impl) == 0).all()


# what the interpreter's numpy says of such products
@pytest.mark.filterwarnings("ignore:(invalid|overflow):RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_numbers_beyond_float32_stay_in_their_token(value):
    """The other tokens keep their clusters, and every label is one."""
    x, c = normal(1, 1, 40, 16).bfloat16(), normal(1, 1, 20, 16, seed=1).bfloat16()
    want = assign(x, c, impl="triton")
    x[0, 0, 7, 3] = value
    found = assign(x, c, impl="triton")
    assert torch.equal(found[..., :7], want[..., :7]) and torch.equal(found[..., 8:], want[..., 8:])
    c[...] = value
    assert (assign(x, c, impl="triton") < 20).all()


@BOTH
@pytest.mark.parametrize("dtype,iterations", [(torch.bfloat16, 1), (torch.float32, 2)])
def test_each_centroid_is_the_mean_of_its_label(impl, dtype, iterations):
    """Two tensors of other lengths, heads and counts; one lies in memory as [B, S, H, D]."""
    xs = normal(2, 200, 2, 16).to(dtype).transpose(1, 2), normal(2, 1, 140, 16).to(dtype)
    starts = normal(2, 2, 12, 16, seed=1).to(dtype), normal(2, 1, 40, 16, seed=1).to(dtype)
    starts[0][:, :, 5] = 100.0
    both = kmeans(list(zip(xs, starts, strict=True)), iterations, impl=impl)
    for x, start, (c, order, offsets) in zip(xs, starts, both, strict=True):
        tokens, count, sizes = x.shape[2], start.shape[2], offsets.diff()
        labels = labels_of(order, offsets)
        assert (offsets[..., 0] == 0).all() and (offsets[..., -1] == tokens).all()
        assert torch.equal(order, labels.argsort(dim=-1, stable=True)), "not in the old order"
        member = torch.nn.functional.one_hot(labels, count).double()
        mean = member.mT @ x.double() / member.sum(-2)[..., None].clamp(min=1)
        torch.testing.assert_close(c[sizes > 0].double(), mean[sizes > 0], rtol=1e-5, atol=1e-6)
        if iterations == 1:
            assert torch.equal(labels, assign(x, start, impl=impl))
            assert torch.equal(c[sizes == 0], start.float()[sizes == 0]), "an empty cluster moved"
    assert (both[0][2].diff()[..., 5] == 0).all()
    # each alone, and one batch element of it
    alone = kmeans([(xs[1][1:], starts[1][1:])], iterations, impl=impl)[0]
    assert all(torch.equal(a, b[1:]) for a, b in zip(alone, both[1], strict=True))


def test_iterations_never_raise_the_distortion():
    x = normal(1, 2, 300, 8)
    losses = []
    for n in range(1, 8):
        c, order, offsets = kmeans([(x, x[:, :, :10])], n)[0]
        near = c.gather(2, labels_of(order, offsets)[..., None].expand_as(x))
        losses.append((x - near).square().sum().item())
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(losses))


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 1000])
def test_starting_places_are_distinct_and_spread(tokens):
    for clusters in {1, tokens // 3 + 1, tokens}:
        at = _spread(tokens, clusters, "cpu")
        part = (at + 1) * clusters - 1  # the part of a place, counted from its last token
        assert torch.equal(part // tokens, torch.arange(clusters)) and (at < tokens).all()


@pytest.mark.parametrize("grid", [Grid(3, 6, 7), Grid(3, 6, 7, 5), Grid(3, 6, 7, 9, True)])
def test_blocks_are_per_head_and_text_stands_behind(grid):
    x = QKV(*normal(3, 2, 4, grid.tokens, 8))
    x = x._replace(k=x.k[:, :2], v=x.v[:, :2])
    ctx = Context(grid=grid)
    layout = Clusters(7, 11, 4, 2)(x, ctx)
    first = grid.text if grid.text_first else 0
    text = torch.arange(grid.text, device=DEVICE) + (0 if grid.text_first else grid.video)
    for blocks, heads, count in ((layout.q, 4, 7), (layout.kv, 2, 11)):
        assert blocks.video == count and blocks.order.shape == (2, heads, grid.tokens)
        assert (blocks.order[..., grid.video :] == text).all()
        assert (blocks.bounds()[..., count] == grid.video).all()
        assert (blocks.bounds(heads=4).shape[1]) == 4
    moved = arranged(x, layout, ctx)
    assert torch.equal(restored(moved.q, layout.q, ctx), x.q)
    assert torch.equal(restored(moved.v, layout.kv, ctx), x.v)
    video = x.k[:, :, first : first + grid.video]
    pooled = pool_blocks(moved.k[:, :, : grid.video], Cut(99, layout.kv.bounds()[..., :12]))
    some = layout.kv.sizes()[..., :11] > 0
    torch.testing.assert_close(ctx.cache["k centroids"][some], pooled[some])
    one = video.gather(2, (layout.kv.order[..., :1] - first)[..., None].expand(-1, -1, -1, 8))
    assert torch.equal(one, moved.k[:, :, :1])


def test_the_next_step_starts_from_the_last_centroids():
    grid, arrange = Grid(2, 8, 9), Clusters(5, 9, 6, 2)
    one, two = QKV(*normal(3, 1, 2, 144, 8)), QKV(*normal(3, 1, 2, 144, 8, seed=1))
    ctx = Context(grid=grid)
    arrange(one, ctx)
    cold = ctx.state[arrange, "k"]
    assert torch.equal(cold, kmeans([(one.k, one.k[:, :, _spread(144, 9, DEVICE)])], 6)[0][0])
    arrange(two, ctx)
    assert torch.equal(ctx.state[arrange, "k"], kmeans([(two.k, cold)], 2)[0][0])
    other = Context(grid=grid)
    arrange(two, other)
    assert not torch.equal(other.state[arrange, "k"], ctx.state[arrange, "k"])
    # tensors of another shape start anew
    arrange(QKV(*(t[:, :1] for t in two)), ctx)
    assert ctx.state[arrange, "k"].shape[1] == 1


@pytest.mark.parametrize("tokens,counts", [(75600, (302, 990)), (2304, (36, 72)), (1, (1, 1))])
def test_counts_follow_the_tokens(tokens, counts):
    x = torch.zeros(1, 1, tokens, 2)
    layout = Clusters(cold_iters=1)(QKV(x, x, x), Context())
    assert (layout.q.count, layout.kv.count) == counts


@pytest.mark.parametrize(
    "params,words",
    [
        ({"q_clusters": 41}, ["q_clusters=41", "40 video tokens"]),
        ({"k_clusters": 41}, ["k_clusters=41", "40"]),
        ({"k_clusters": -1}, ["k_clusters=-1", "at least 0"]),
        ({"q_clusters": 2.5}, ["q_clusters=2.5", "integer"]),
        ({"cold_iters": 0}, ["cold_iters=0", "at least 1"]),
        ({"warm_iters": True}, ["warm_iters=True", "like 2"]),
    ],
)
def test_bad_values(params, words):
    q = torch.zeros(1, 1, 44, 8, device=DEVICE)
    with pytest.raises(ArgumentError) as caught:
        dit_sparse.attention(q, q, q, "svg2", grid=Grid(2, 4, 5, text=4), **params)
    assert all(w in str(caught.value) for w in words) and "\n" not in str(caught.value)
