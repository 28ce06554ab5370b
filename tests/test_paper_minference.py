"""MInference (2407.02490): what its rules imply."""

from dataclasses import replace

import pytest
import torch

import dit_sparse
from dit_sparse.core import QKV, Known
from dit_sparse.errors import ArgumentError
from dit_sparse.methods.minference import search
from dit_sparse.score.lines import line_masses
from dit_sparse.testing import Problem, relative_error
from tests.text_oracle import attend, problem, tokens, visible, weights

BLOCK, LAST = 8, 12
# float64 sums of at most 300 terms
BAND = 1e-12
LENGTHS = [(96, 96), (101, 101), (50, 131)]


def minference(*shapes, **params):
    small = {"block": BLOCK, "last": LAST, "sink": 2, "local": 3}
    return dit_sparse.get("minference", **small, heads=(shapes,) * 4 if shapes else (), **params)


def best(mass, count):
    return set(mass.argsort(descending=True, stable=True)[:count].tolist())


def lines(x, head, columns, slashes):
    """Return the pairs of a head's columns and slashes, built piece by piece."""
    queries, keys = x.q.shape[2], x.k.shape[2]
    p = weights(x)[0, head, -LAST:]
    column, slash = p.sum(0), torch.zeros(keys, dtype=torch.float64)
    for r in range(LAST):
        position = keys - LAST + r
        for d in range(position + 1):
            slash[d] += p[r, position - d]
    column[:2], slash[:3] = float("inf"), float("inf")
    mask = torch.zeros(queries, keys, dtype=torch.bool)
    mask[:, sorted(best(column, columns))] = True
    for start in range(0, queries, BLOCK):
        end = keys - queries + start + BLOCK
        for d in best(slash, slashes):
            mask[start : start + BLOCK, max(0, end - BLOCK - d) : max(0, end - d)] = True
    return mask & visible(queries, keys)


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize(("columns", "slashes"), [(5, 50), (9, 51)])
def test_columns_and_slashes(queries, keys, columns, slashes):
    given = problem(queries, keys)
    slashes = min(slashes, keys)
    plan = minference(columns=columns, slashes=slashes).plan(given.x, given.context())
    mask = torch.stack([lines(given.x, h, columns, slashes) for h in (0, 1)])[None]
    assert torch.equal(tokens(plan), mask)
    method = minference(columns=columns, slashes=slashes)
    for impl in ("reference", "torch"):
        assert relative_error(given.run(method, impl), attend(given.x, mask)) < BAND


@pytest.mark.parametrize(("rows", "keys"), [(1, 9), (12, 40), (7, 7)])
def test_line_masses_sum_the_map(rows, keys):
    x = problem(rows, keys).x
    p = weights(x)
    column, slash = line_masses(x.q, x.k)
    assert relative_error(column, p.sum(2)) < BAND
    diagonals = [p.diagonal(keys - rows - d, 2, 3).sum(-1) for d in range(keys)]
    assert relative_error(slash, torch.stack(diagonals, -1)) < BAND


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("budget", [{"columns": 200}, {"slashes": 200}])
def test_all_columns_or_all_slashes_are_dense(queries, keys, budget):
    given = problem(queries, keys)
    out = given.run(minference(**{"columns": 3, "slashes": 50, **budget}))
    assert relative_error(out, attend(given.x, visible(queries, keys).expand(1, 2, -1, -1))) < BAND


def test_first_keys_and_near_distances_are_always_covered():
    given = problem(160)
    method = dit_sparse.get("minference", columns=30, slashes=50, block=16, last=16)
    seen = tokens(method.plan(given.x, given.context()))
    assert seen[..., :30].eq(visible(160, 160)[:, :30]).all()
    # as many of the first 100 distances, which come before all others
    for i in range(160):
        assert seen[:, :, i, max(0, i - 49) : i + 1].all()


def test_a_period_of_the_rotation_is_found():
    """Constant vectors under a rotation of one frequency: mass peaks at multiples of its period."""
    n, period = 120, 24
    angle = torch.arange(n, dtype=torch.float64) * 2 * torch.pi / period
    turn = 8 * torch.stack((angle.cos(), angle.sin()), -1)[None, None]
    _, slash = line_masses(turn[:, :, -LAST:], turn)
    # distances that every one of the last queries has
    mean = slash[0, 0, : n - LAST]
    peaks = (mean[1:-1] > mean[:-2]) & (mean[1:-1] > mean[2:])
    assert (peaks.nonzero()[:, 0] + 1).tolist() == [24, 48, 72, 96]


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_windows(queries, keys):
    given = problem(queries, keys)
    plan = minference("A 10 20", "A 1 5").plan(given.x, given.context())
    for head, (first, local) in enumerate([(10, 20), (1, 5)]):
        start = torch.arange(queries) // BLOCK * BLOCK + keys - queries
        key = torch.arange(keys)
        mask = (key < first) | (start[:, None] - key < local)
        assert torch.equal(tokens(plan)[0, head], mask & visible(queries, keys))


@pytest.mark.parametrize(("queries", "keys"), [(96, 96), (101, 101), (48, 128)])
def test_blocks(queries, keys):
    """The best blocks of each row by the product of means; the own one is kept in any case."""
    given = problem(queries, keys)
    count = 3
    seen = tokens(minference("B 3", "B 3").plan(given.x, given.context()))
    shift = keys - queries
    for start in range(0, queries, BLOCK):
        q = given.x.q[:, :, start : start + BLOCK].mean(2)
        ends = range(0, min(start + shift + BLOCK, keys), BLOCK)
        means = torch.stack([given.x.k[:, :, j : j + BLOCK].mean(2) for j in ends], 2)
        for head in (0, 1):
            product = (means[0, head] * q[0, head]).sum(-1)
            kept = best(product, count) | {len(ends) - 1}
            row = seen[0, head, min(start + BLOCK, queries) - 1]
            assert {j // BLOCK for j in row.nonzero()[:, 0].tolist()} == kept


def test_every_head_has_its_own_shape():
    given = problem(96, heads=4)
    x = QKV(given.x.q, given.x.k[:, ::2], given.x.v[:, ::2])
    shapes = ("V 5 50", "A 4 12", "V 5 50", "B 2")
    mixed = minference(*shapes).plan(x, given.context()).level
    for head, shape in enumerate(shapes):
        alone = minference(*[shape] * 4).plan(x, given.context()).level
        assert torch.equal(mixed[:, head], alone[:, head])
    with pytest.raises(ArgumentError, match="layer 4 is beyond its last"):
        minference(*shapes).score.check(Known((0, 4), 4))


def test_the_search_finds_the_shape_of_each_head():
    """A head that looks around, and one that looks at columns."""
    n = 128
    q = torch.zeros(1, 2, n, n, dtype=torch.float64)
    k = torch.zeros_like(q)
    at = torch.arange(n)
    # head 0: keys at distance up to 5; head 1: keys 7, 30 and 50
    k[0, 0, at, at] = 6.0
    for d in range(6):
        q[0, 0, at[d:], at[: n - d]] = 6.0
    k[0, 1, [7, 30, 50], 0], q[0, 1, :, 0] = 9.0, 9.0
    x = QKV(q, k, torch.randn(1, 2, n, 16, dtype=torch.float64))
    # a head of lines has at least 50 slashes
    shapes = ("A 1 100", "A 40 1", "V 5 1")
    found = search(x, shapes, block=BLOCK, last=LAST, sink=2, local=1)
    assert found == ("A 1 100", "V 5 1")


def test_no_future_key_moves_a_chunk():
    """A chunk's plan is that of its own queries and the keys so far."""
    given = problem(96)
    part = Problem(None, QKV(given.x.q[:, :, 40:72], given.x.k[:, :, :72], given.x.v[:, :, :72]))
    way = minference(columns=4, slashes=50)
    changed = replace(given, x=QKV(given.x.q, given.x.k.clone(), given.x.v.clone()))
    changed.x.k[:, :, 72:] = 100.0
    again = Problem(None, QKV(part.x.q, changed.x.k[:, :, :72], changed.x.v[:, :, :72]))
    assert torch.equal(part.run(way), again.run(way))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"columns": 0}, "columns=0"),
        ({"heads": (("V 3",),)}, "'V 3'"),
        ({"heads": (("A 0 4",),)}, "'A 0 4'"),
        ({"heads": (("",),)}, "must be 'A first local'"),
        ({"block": 2.5}, "block=2.5"),
    ],
)
def test_refusals(params, words):
    with pytest.raises(ArgumentError, match=words):
        dit_sparse.get("minference", **params)
    with pytest.raises(ArgumentError, match="causal=True"):
        dit_sparse.attention(*problem(64).x, "minference")
