"""SVG2 (2505.18875): its selection and its output, against a token-level oracle in float64."""

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.core import QKV, Context
from dit_sparse.errors import ArgumentError
from dit_sparse.score.centroids import CentroidMass
from dit_sparse.testing import relative_error

GRID = Grid(4, 8, 10)
COUNTS = {"q_clusters": 9, "k_clusters": 24, "cold_iters": 8}


def draw(tokens=GRID.tokens, groups=12, spread=0.4, dim=16, heads=2, seed=0):
    """q, k, v [2, H, S, D] float64 of tokens that fall into groups, in no order."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for size in (2.0, 2.0, 1.0):
        centre = torch.randn(2, heads, groups, dim, generator=g, dtype=torch.float64)
        label = torch.randint(groups, (2, heads, tokens, 1), generator=g).expand(-1, -1, -1, dim)
        noise = torch.randn(2, heads, tokens, dim, generator=g, dtype=torch.float64)
        out.append(size * (centre.gather(2, label) + spread * noise))
    return out


def labels(blocks, tokens):
    """Return the block of every token in the given order, [B, H, S]."""
    sizes = blocks.sizes().long()
    ids = [torch.arange(blocks.count).repeat_interleave(n) for n in sizes.flatten(0, 1)]
    ids = torch.stack(ids).view(*sizes.shape[:2], tokens)
    return torch.empty_like(ids).scatter_(-1, blocks.order, ids)


def means(x, label, count):
    member = torch.nn.functional.one_hot(label, count).double()
    return member.mT @ x / member.sum(-2)[..., None].clamp(min=1), member.sum(-2)


def prefix(mass, top_p, least):
    """Return the shortest prefix that reaches top_p, at least `least` long, row by row."""
    kept = torch.zeros_like(mass, dtype=torch.bool)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in mass.shape[:3])):
        row, total = mass[tuple(at)], 0.0
        for rank, j in enumerate(row.argsort(descending=True)):
            if rank >= least and total >= top_p:
                break
            total += row[j]
            kept[(*at, j)] = row[j] > 0
    return kept


def oracle(q, k, v, plan, top_p, min_keep):
    """Return the kept pairs [B, H, M, N] and the output by the formulas, from the labels alone."""
    tokens, m, n = q.shape[2], plan.layout.q.video, plan.layout.kv.video
    rows, cols = labels(plan.layout.q, tokens), labels(plan.layout.kv, tokens)
    (qbar, _), (kbar, size) = means(q, rows, m), means(k, cols, n)
    logits = qbar @ kbar.mT / q.shape[-1] ** 0.5 + size.log()[:, :, None]
    kept = prefix(logits.softmax(-1), top_p, max(1, int(min_keep * n)))
    seen = kept.gather(2, rows[..., None].expand(-1, -1, -1, n))
    seen = seen.gather(3, cols[:, :, None].expand(-1, -1, tokens, -1))
    s = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
    return kept, s.softmax(-1) @ v


@pytest.mark.parametrize("top_p,min_keep", [(0.9, 0.1), (0.5, 0.0), (0.3, 0.4)])
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_equals_the_oracle(top_p, min_keep, impl):
    q, k, v = draw()
    params = {**COUNTS, "top_p": top_p, "min_keep": min_keep, "impl": impl, "grid": GRID}
    plan = dit_sparse.plan(q, k, v, "svg2", **params)
    kept, out = oracle(q, k, v, plan, top_p, min_keep)
    some = plan.layout.q.sizes() > 0
    assert torch.equal(plan.level.bool()[some], kept[some])
    assert relative_error(dit_sparse.attention(q, k, v, "svg2", **params), out) < 1e-10


@pytest.mark.parametrize("change", [{"top_p": 1.0}, {"keep": 1.0}, {"min_keep": 1.0}])
@pytest.mark.parametrize("name", ["svg2", "svg_ear"])
def test_the_whole_budget_is_dense(name, change):
    q, k, v = draw()
    out = dit_sparse.attention(q, k, v, name, grid=GRID, **COUNTS, **change)
    assert relative_error(out, dit_sparse.attention(q, k, v, "dense")) < 1e-12


def test_kept_mass_reaches_top_p_and_no_block_is_spare():
    q, k, v = draw()
    x, ctx = QKV(q, k, v), Context(grid=GRID)
    method = dit_sparse.get("svg2", top_p=0.6, min_keep=0.0, **COUNTS)
    plan = method.plan(x, ctx)
    mass = CentroidMass()(x, plan.layout, ctx)
    kept = torch.where(plan.level == 1, mass, 0.0)
    least = torch.where(plan.level == 1, mass, 2.0).amin(-1)
    assert torch.allclose(mass.sum(-1), torch.ones(()).double())
    assert (kept.sum(-1) >= 0.6).all() and (kept.sum(-1) - least < 0.6).all()


def test_means_and_pooled_tokens_give_one_mass():
    """The centroids that clustering leaves behind are those that pooling would find."""
    q, k, v = draw()
    x, ctx = QKV(q, k[:, :1], v[:, :1]), Context(grid=GRID)
    layout = dit_sparse.get("svg2", **COUNTS).arrange(x, ctx)
    shared, pooled = (CentroidMass()(x, layout, c) for c in (ctx, Context(grid=GRID)))
    some = layout.q.sizes() > 0
    assert torch.allclose(shared[some], pooled[some], rtol=1e-12)


def test_empty_clusters_take_no_part():
    """Three kinds of keys leave most of 24 clusters empty: none is listed, nothing is NaN."""
    q, k, v = draw()
    k = k[:, :, :3].repeat(1, 1, 107, 1)[:, :, : GRID.tokens]
    for params in ({"top_p": 0.7}, {"keep": 0.4}):
        plan = dit_sparse.plan(q, k, v, "svg2", grid=GRID, **COUNTS, **params)
        empty = plan.layout.kv.sizes()[:, :, None] == 0
        assert empty.sum() >= 4 * 20 and not (plan.level.bool() & empty).any()
        assert dit_sparse.attention(q, k, v, "svg2", grid=GRID, **COUNTS, **params).isfinite().all()


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.125])
@pytest.mark.parametrize("name", ["svg2", "svg_ear"])
def test_keep_is_the_density(name, keep):
    """A row misses its share by half a cluster at most, and rows err to both sides."""
    q, k, v = draw(spread=1.0)
    plan = dit_sparse.plan(q, k, v, name, grid=GRID, keep=keep, **COUNTS)
    sizes = plan.layout.kv.sizes()[:, :, None]
    tokens = (plan.level * sizes).sum(-1)
    single = plan.level.sum(-1) == 1
    off = (tokens - keep * GRID.tokens).abs()
    assert (single | (off <= sizes.amax(-1) / 2)).all()
    assert abs(plan.density().item() - keep) < 0.02


def test_text_is_exact_whatever_its_place():
    """Text before the video is the same problem as text behind it, and text rows are dense."""
    q, k, v = draw(GRID.tokens + 7)
    last, first = (Grid(4, 8, 10, 7, text_first=t) for t in (False, True))
    params = {**COUNTS, "top_p": 0.3, "min_keep": 0.0}
    behind = dit_sparse.attention(q, k, v, "svg2", grid=last, **params)
    moved = dit_sparse.attention(*(t.roll(7, 2) for t in (q, k, v)), "svg2", grid=first, **params)
    assert relative_error(moved.roll(-7, 2), behind) < 1e-12
    dense = dit_sparse.attention(q, k, v, "dense")
    assert relative_error(behind[:, :, -7:], dense[:, :, -7:]) < 1e-12
    assert relative_error(behind[:, :, :-7], dense[:, :, :-7]) > 1e-3


def test_causal_is_refused():
    q, k, v = draw()
    with pytest.raises(ArgumentError, match="causal"):
        dit_sparse.attention(q, k, v, "svg2", causal=True)


def test_a_sequence_without_a_grid_is_clustered_whole():
    q, k, v = draw()
    bare = dit_sparse.attention(q, k, v, "svg2", **COUNTS)
    assert torch.equal(bare, dit_sparse.attention(q, k, v, "svg2", grid=GRID, **COUNTS))
    few = dit_sparse.attention(q[:, :, :50], k, v, "svg2", top_p=1.0, **COUNTS)
    assert relative_error(few, dit_sparse.attention(q[:, :, :50], k, v, "dense")) < 1e-12


def test_nan_in_gives_nan_out():
    q, k, v = (t.float() for t in draw())
    q[0, 0, 5, 0] = float("nan")
    for name in ("svg2", "svg_ear"):
        out = dit_sparse.attention(q, k, v, name, grid=GRID, **COUNTS)
        assert out[0, 0, 5].isnan().all() and out[1].isfinite().all()


def test_clusters_of_like_tokens_beat_patches():
    """At one density they hold more of the mass than neighbours on the grid."""
    q, k, v = draw(spread=0.2)
    truth = dit_sparse.attention(q, k, v, "dense")
    ours = dit_sparse.attention(q, k, v, "svg2", grid=GRID, keep=0.3, **COUNTS)
    raster = dit_sparse.attention(q, k, v, "draft", rule="row", keep=0.3, patch=(4, 5), grid=GRID)
    assert relative_error(ours, truth) < 0.5 * relative_error(raster, truth)
