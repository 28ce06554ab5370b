"""PSA (2512.04025): what its formulas imply, against a token-level oracle in float64.

The oracle repeats every pooled token for each token it stands for, so it needs no bias.
"""

from dataclasses import replace
from math import log

import pytest
import torch

import dit_sparse
from dit_sparse import Context, Grid
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.pyramid import Pyramid
from dit_sparse.core import QKV, Blocks, Layout, Plan
from dit_sparse.kernels.attention import block_sparse_attention
from dit_sparse.kernels.lists import pack_lists
from dit_sparse.testing import Problem, relative_error

BQ, BK = 32, 16
# the bias log n is float32: it moves a weight by eps / 2 * ln 8, which counts in the sum over the
# keys and in its norm, and outputs are up to four times smaller than the values they cancel from
BAND = torch.finfo(torch.float32).eps * log(8) * 4
IMPLS = pytest.mark.parametrize("impl", ["reference", "torch"])


def draw(tokens=160, dim=16, heads=2, kv_heads=2):
    q, k, v = (
        torch.randn(2, h, tokens, dim, dtype=torch.float64) for h in (heads, kv_heads, kv_heads)
    )
    return QKV(2 * q, 2 * k, v)


def pooled(x, factor, block=BK):
    """Return x with each token replaced by the mean of its group; groups end with their block."""
    parts = [group for part in x.split(block, 2) for group in part.split(factor, 2)]
    return torch.cat([p.mean(2, keepdim=True).expand_as(p) for p in parts], 2)


def oracle(x, level, block=BK):
    """Attend at the given levels [B, H, M, N], token by token, with a full softmax."""
    q, k, v = x
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    rows = torch.arange(q.shape[2]) // BQ
    cols = torch.arange(k.shape[2]) // block
    at = level[:, :, rows][..., cols]
    logits = torch.full(at.shape, float("-inf"), dtype=torch.float64)
    for i in range(1, 5):
        pair = q @ pooled(k, 2 ** (i - 1), block).mT * q.shape[-1] ** -0.5
        logits = torch.where(at == i, pair, logits)
    p = logits.softmax(-1)
    return sum((p * (at == i)) @ pooled(v, 2 ** (i - 1), block) for i in range(1, 5))


def plan(x, level, block=BK):
    return Plan(Layout(*(Blocks.uniform(x.q.shape[2], n) for n in (BQ, block))), level)


def attend(x, level, impl="torch", block=BK):
    return Attend(Pyramid())(x, plan(x, level, block), Context(impl=impl))


def levels(tokens=160, least=0, block=BK):
    """Draw levels with one exact block per row at least."""
    level = torch.randint(least, 5, (2, 2, -(-tokens // BQ), -(-tokens // block)))
    level[..., 0] = 1
    return level.to(torch.int8)


def dense(x):
    return dit_sparse.attention(*x, "dense")


@IMPLS
@pytest.mark.parametrize("tokens", [160, 150, 147, 129, 7])
@pytest.mark.parametrize("block", [16, 8, 64])
def test_equals_repeated_means(tokens, block, impl):
    """Also at a ragged end, where groups hold fewer tokens and their bias is that count's."""
    for kv_heads in (1, 2):
        x, level = draw(tokens, kv_heads=kv_heads), levels(tokens, block=block)
        assert relative_error(attend(x, level, impl, block), oracle(x, level, block)) < BAND


@IMPLS
def test_gradients_are_the_oracle_s_at_frozen_levels(impl):
    level, weight = levels(150), torch.randn(2, 2, 150, 16, dtype=torch.float64)
    grads = []
    for call in (lambda x: attend(x, level, impl), lambda x: oracle(x, level)):
        torch.manual_seed(3)
        x = QKV(*(t.requires_grad_() for t in draw(150)))
        (call(x) * weight).sum().backward()
        grads.append([t.grad for t in x])
    for ours, truth in zip(*grads, strict=True):
        assert relative_error(ours, truth) < BAND


def test_constant_groups_lose_nothing():
    """Keys equal in each group of 8 make any levels without skips exact, whatever the values."""
    x = draw()
    x = x._replace(k=pooled(x.k, 8))
    assert relative_error(attend(x, levels(least=1)), dense(x)) < BAND
    assert relative_error(attend(x, levels()), dense(x)) > 0.01, "skips must show"


def test_one_level_alone():
    """Exact everywhere is dense; exact on J and skipped elsewhere is dense on J."""
    x, level = draw(), torch.ones(2, 2, 5, 10, dtype=torch.int8)
    assert relative_error(attend(x, level), dense(x)) < 1e-12
    level[..., [1, 2, 7]] = 0
    kept = (torch.arange(160) // BK)[:, None] != torch.tensor([1, 2, 7])
    some = QKV(x.q, *(t[:, :, kept.all(1)] for t in x[1:]))
    assert relative_error(attend(x, level), dense(some)) < 1e-12


def test_order_inside_a_pooled_group_is_free():
    x, level = draw(), torch.full((2, 2, 5, 10), 4, dtype=torch.int8)
    level[..., 0] = 1
    swap = torch.arange(160).unflatten(0, (20, 8))[:, torch.randperm(8)].flatten()
    swap[:BK] = swap[:BK].sort().values
    moved = QKV(x.q, x.k[:, :, swap], x.v[:, :, swap])
    assert relative_error(attend(moved, level), attend(x, level)) < BAND


@IMPLS
def test_order_of_the_lists_is_free(impl):
    x, level = draw(), levels()
    columns, _ = Pyramid()(x, plan(x, level), Context())
    turned = columns.index.gather(-1, (columns.count[..., None] - 1 - torch.arange(
        columns.index.shape[-1])).clamp(min=0))  # fmt: skip
    assert not torch.equal(turned, columns.index)
    count, index = pack_lists(level == 1)
    one, two = (
        block_sparse_attention(*x, count, index, q_blocks=BQ, kv_blocks=BK, columns=c, impl=impl)[0]
        for c in (columns, replace(columns, index=turned.int()))
    )
    assert relative_error(one, two) < 1e-12


def test_work_is_what_the_lists_hold():
    """density is exact tokens and pooled columns listed, of all pairs."""
    x, level = draw(), levels()
    p = plan(x, level)
    columns, _ = Pyramid()(x, p, Context())
    done = (level == 1).sum() * BK + columns.count.sum() * columns.group
    assert p.density().item() == pytest.approx(done.item() / (level.numel() * BK), rel=1e-6)


@pytest.mark.parametrize("order", ["gilbert", "raster", "tiles"])
@pytest.mark.parametrize("grid", [Grid(3, 5, 7), Grid(2, 8, 9, text=11, text_first=True)])
def test_any_order_of_a_dense_plan_is_dense(grid, order):
    """Text never enters a pooled column, in any order, so the same holds for it at low budgets."""
    x = Problem.make(grid).x
    out = dit_sparse.attention(*x, "psa", grid=grid, order=order, keep=1.0, block=(BQ, 8))
    assert relative_error(out, dense(x)) < 1e-12
    if grid.text:
        low = {"grid": grid, "order": order, "keep": 0.1, "block": (BQ, 8), "impl": "torch"}
        text = slice(0, grid.text)
        out = dit_sparse.attention(*x, "psa", **low)
        assert relative_error(out[:, :, text], dense(x)[:, :, text]) < 1e-12
        # one loud text value moves every output by its weight alone: pooled columns stay
        v = x.v.clone()
        v[:, :, text] += 100
        pooled_v = dit_sparse.attention(x.q, x.k, v, "psa", **low) - out
        ones = torch.zeros_like(v)
        ones[:, :, text] = 100
        weight = dit_sparse.attention(x.q, x.k, ones, "psa", **low)
        assert relative_error(pooled_v, weight) < 1e-9


def test_several_levels_beat_one():
    """At equal work the pyramid is nearer to dense attention than exact blocks alone."""
    grid = Grid(8, 16, 16)
    p = Problem.make(grid, batch=1)
    for keep in (0.25, 0.125):
        runs = [
            dit_sparse.get("psa", keep=keep, block=(64, 32), levels=n) for n in ((1, 2, 4, 8), (1,))
        ]
        many, one = (relative_error(p.run(m, "torch"), dense(p.x)) for m in runs)
        density = [m.plan(p.x, p.context()).density().item() for m in runs]
        assert density == pytest.approx([keep, keep], abs=1.01 / 64) and many < one
