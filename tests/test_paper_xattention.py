"""XAttention (2503.16428): what its rules imply."""

import pytest
import torch

import dit_sparse
from dit_sparse import Context
from dit_sparse.arrange.raster import Raster
from dit_sparse.core import QKV, Known
from dit_sparse.errors import ArgumentError
from dit_sparse.methods.xattention import calibrate
from dit_sparse.score.antidiagonal import Antidiagonal
from dit_sparse.testing import relative_error
from tests.text_oracle import attend, problem, tokens, visible, weights

BLOCK = 16
# float64 sums of at most 300 terms
BAND = 1e-12


def score(x, stride, block=BLOCK):
    ctx = Context(causal=True, impl="reference")
    return Antidiagonal(stride)(x, Raster(block)(x, ctx), ctx)


def brute(x, stride, block=BLOCK):
    """Sum antidiagonals pair by pair; return the masses of the blocks."""
    sq, skv = x.q.shape[2], x.k.shape[2]
    rows, cols = -(-sq // stride), -(-skv // stride)
    logits = torch.full((*x.q.shape[:2], rows, cols), float("-inf"), dtype=torch.float64)
    for a in range(rows):
        last = min(a * stride + stride, sq) - 1 + skv - sq
        for b in range(cols):
            if b * stride <= last:
                total = torch.zeros(x.q.shape[:2], dtype=torch.float64)
                for r in range(stride):
                    i, j = a * stride + stride - 1 - r, b * stride + r
                    if i < sq and j < skv:
                        total += (x.q[:, :, i] * x.k[:, :, j]).sum(-1)
                logits[:, :, a, b] = total * x.q.shape[-1] ** -0.5 / stride
    p, per = logits.softmax(-1), block // stride
    shape = (*x.q.shape[:2], -(-sq // block) * per, -(-skv // block) * per)
    full = torch.zeros(shape, dtype=torch.float64)
    full[:, :, :rows, :cols] = p
    return full.unflatten(3, (-1, per)).sum(4).unflatten(2, (-1, per)).sum(3)


@pytest.mark.parametrize(("queries", "keys"), [(48, 48), (37, 37), (21, 50)])
@pytest.mark.parametrize("stride", [2, 4, 8])
def test_scores_are_antidiagonal_sums(queries, keys, stride):
    x = problem(queries, keys).x
    assert relative_error(score(x, stride), brute(x, stride)) < BAND


@pytest.mark.parametrize(("queries", "keys"), [(48, 48), (21, 50)])
def test_stride_one_is_the_exact_mass(queries, keys):
    x = problem(queries, keys).x
    p = torch.nn.functional.pad(weights(x), (0, -keys % BLOCK, 0, -queries % BLOCK))
    mass = p.unflatten(3, (-1, BLOCK)).sum(4).unflatten(2, (-1, BLOCK)).sum(3)
    assert relative_error(score(x, 1), mass) < BAND


def test_all_mass_is_dense():
    given = problem(150, 190)
    out = given.run(dit_sparse.get("xattention", tau=1.0, block=BLOCK))
    mask = visible(150, 190).expand(1, 2, -1, -1)
    assert relative_error(out, attend(given.x, mask)) < BAND


@pytest.mark.parametrize("tau", [0.3, 0.6, 0.9])
def test_a_row_keeps_as_little_as_reaches_tau(tau):
    """Forced blocks first; without the last of the others the mass is short."""
    given = problem(160, 200)
    method = dit_sparse.get("xattention", tau=tau, block=BLOCK)
    plan, mass = method.plan(given.x, given.context()), score(given.x, 8)
    kept, forced = plan.level == 1, torch.zeros_like(plan.level, dtype=torch.bool)
    forced[..., 0] = True
    for m in range(plan.level.shape[2]):
        first = 40 + m * BLOCK
        forced[:, :, m, first // BLOCK : (min(first + BLOCK, 200) - 1) // BLOCK + 1] = True
    assert kept[forced].all() and (kept & ~forced).any()
    total, got = mass.sum(-1), (mass * kept).sum(-1)
    assert (got >= tau * total - BAND).all()
    others = mass.masked_fill(~kept | forced, float("inf")).amin(-1)
    some = others < float("inf")
    assert (got - others < tau * total)[some].all()
    # and no block left out scores more than one that was chosen
    left = mass.masked_fill(kept, 0).amax(-1)
    assert (left <= others)[some].all()
    assert relative_error(given.run(method), attend(given.x, tokens(plan))) < BAND


def lines(stride, distance=None, column=None, n=64):
    """Return logits of one cell map where one slash or one column is hot, as masses of cells."""
    q, k = torch.zeros(1, 1, n, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    for i in range(n):
        j = column if distance is None else i - distance
        if 0 <= j <= i:
            q[0, 0, i, j] = 50.0
    x = QKV(q, k[None, None], k[None, None])
    return score(x, stride, stride)[0, 0]


@pytest.mark.parametrize("stride", [3, 4])
def test_a_column_is_seen_wherever_it_lies(stride):
    for column in range(8, 8 + stride):
        mass = lines(stride, column=column)
        last = mass[40 // stride]
        assert last.argmax() == column // stride


@pytest.mark.parametrize("stride", [3, 4])
@pytest.mark.parametrize("distance", [20, 21])
def test_an_even_stride_misses_slashes_of_even_distance(stride, distance):
    """Sampled pairs are r and stride - 1 - r apart: an odd number where the stride is even."""
    last = lines(stride, distance)[60 // stride]
    hot = last.max() > 2 * last[0].clamp(min=1e-9)
    assert hot == (stride % 2 == 1 or distance % 2 == 1)


def test_shares_by_head():
    given = problem()
    table = ((0.1, 1.0), (1.0, 0.1))
    for layer in (0, 1):
        method = dit_sparse.get("xattention", block=BLOCK, heads=table)
        level = method.plan(given.x, given.context(layer=layer)).level
        for head in (0, 1):
            one = dit_sparse.get("xattention", block=BLOCK, tau=table[layer][head])
            own = one.plan(given.x, given.context()).level
            assert torch.equal(level[:, head], own[:, head])
    for layers, heads, words in ((range(3), 2, "layer 2"), (range(2), 4, "4 heads")):
        with pytest.raises(ArgumentError, match=words):
            method.select.check(Known(tuple(layers), heads))


@pytest.mark.parametrize("cover", [0.5, 0.9])
def test_calibration_covers(cover):
    """With exact scores the share found is that of the fewest blocks, which covers by itself."""
    x = problem(200, heads=3).x
    exact = calibrate(x, stride=1, block=BLOCK, cover=cover, most=1.0)
    assert exact.shape == (3,) and (exact >= cover).all() and (exact < 1).all()
    assert (calibrate(x, stride=8, block=BLOCK, cover=1.0) == 0.96).all()


def test_videos_force_no_block():
    """Without causality the best block may be all that a row keeps."""
    given = problem()
    method = dit_sparse.get("xattention", tau=0.01, block=BLOCK)
    level = method.plan(given.x, given.context(causal=False)).level
    assert (level.sum(-1) == 1).all()
    assert (level.argmax(-1) != 0).any()


@pytest.mark.parametrize(
    ("params", "words"),
    [({"tau": 0.0}, "tau=0.0"), ({"stride": 0}, "stride=0"), ({"block": 100}, "stride=8")],
)
def test_refusals(params, words):
    with pytest.raises(ArgumentError, match=words):
        dit_sparse.get("xattention", **params)
