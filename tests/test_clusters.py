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


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens,clusters,dim", [(150, 37, 24), (1, 1, 16), (70, 70, 40)])
def test_assign_takes_the_nearest(impl, dtype, tokens, clusters, dim):
    x, c = normal(2, 2, tokens, dim).to(dtype), normal(2, 2, clusters, dim, seed=1).to(dtype)
    c[:, :, -1] = c[:, :, 0]
    found = assign(x, c, impl=impl)
    far = torch.cdist(x.double(), c.double()).square()
    taken = far.gather(-1, found[..., None])[..., 0]
    # both sides are sums of dim products in float32
    size = (x.double().norm(dim=-1) + c.double().norm(dim=-1).amax()).square()
    assert (taken - far.amin(-1) <= dim * torch.finfo(torch.float32).eps * size).all()
    assert clusters == 1 or (found != clusters - 1).all(), "a tie goes to the first"


@BOTH
@pytest.mark.parametrize("iterations", [1, 3])
def test_each_centroid_is_the_mean_of_its_label(impl, iterations):
    x, start = normal(2, 3, 200, 16).float(), normal(2, 3, 12, 16, seed=1).float()
    start[:, :, 5] = 100.0
    c, order, offsets = kmeans(x, start, iterations, impl=impl)
    assert torch.equal(order.sort(-1).values, torch.arange(200, device=DEVICE).expand_as(order))
    sizes = offsets.diff()
    assert (sizes >= 0).all() and (offsets[..., 0] == 0).all() and (offsets[..., -1] == 200).all()
    assert (sizes[..., 5] == 0).all() and (c[:, :, 5] == 100).all(), "an empty cluster moved"
    labels = labels_of(order, offsets)
    member = torch.nn.functional.one_hot(labels, 12).double()
    mean = member.mT @ x.double() / member.sum(-2)[..., None].clamp(min=1)
    some = sizes > 0
    torch.testing.assert_close(c[some].double(), mean[some], rtol=1e-5, atol=1e-6)
    if iterations == 1:
        assert torch.equal(labels, assign(x, start, impl=impl))


def test_iterations_never_raise_the_distortion():
    x = normal(1, 2, 300, 8)
    losses = []
    for n in range(1, 8):
        c, order, offsets = kmeans(x, x[:, :, :10], n)
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
    assert torch.equal(cold, kmeans(one.k, one.k[:, :, _spread(144, 9, DEVICE)], 6)[0])
    arrange(two, ctx)
    assert torch.equal(ctx.state[arrange, "k"], kmeans(two.k, cold, 2)[0])
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
