"""DELTA (2510.09883) and HyLRA (2602.00777): layers that choose, and layers that follow."""

from dataclasses import dataclass, replace
from itertools import pairwise, product

import pytest
import torch

import dit_sparse
from dit_sparse.core import QKV
from dit_sparse.errors import ArgumentError
from dit_sparse.integrations import transformers as text
from dit_sparse.methods.delta import place
from dit_sparse.methods.hylra import plan_layers
from dit_sparse.score.layers import PageMass
from dit_sparse.testing import relative_error
from tests.text_oracle import attend, problem, visible, weights
from tests.tiny_text import build, generate, left

PAGE = 8
# float64 sums of at most 300 terms
BAND = 1e-12


def delta(pages=4, recent=2, first=2, deltas=(2, 5), **params):
    given = {"pages": pages, "recent": recent, "first": first, "deltas": deltas}
    return dit_sparse.get("delta", page=PAGE, **given, **params)


def grouped(queries, keys, seed=0):
    given = problem(queries, keys, heads=4, seed=seed)
    return replace(given, x=QKV(given.x.q, given.x.k[:, ::2], given.x.v[:, ::2]))


@pytest.mark.parametrize(("queries", "keys"), [(1, 96), (1, 101), (3, 90)])
def test_pages_are_scored_by_the_dense_map(queries, keys):
    given = grouped(queries, keys)
    method = delta()
    layout = method.arrange(given.x, given.context())
    mass = PageMass()(given.x, layout, given.context())
    share = torch.nn.functional.pad(weights(given.x).amax(1), (0, -keys % PAGE))
    truth = share.unflatten(2, (-1, PAGE)).sum(3)
    assert relative_error(mass, truth[:, None].expand_as(mass)) < BAND
    total = mass.sum(-1)
    assert (total >= 1 - BAND).all() and (total <= 4 + BAND).all()


@pytest.mark.parametrize(("pages", "recent"), [(1, 1), (4, 2), (5, 5), (40, 3)])
@pytest.mark.parametrize("keys", [96, 101])
def test_the_newest_and_the_best_pages(pages, recent, keys):
    given = grouped(1, keys)
    level = delta(pages, recent).plan(given.x, given.context()).level[0, :, 0]
    count = -(-keys // PAGE)
    assert (level == level[:1]).all() and level[0].sum() == min(pages, count)
    assert level[0, -min(recent, count) :].all()
    share = torch.nn.functional.pad(weights(given.x).amax(1), (0, -keys % PAGE))
    older = share.unflatten(2, (-1, PAGE)).sum(3)[0, 0, :-recent]
    chosen = level[0, : len(older)] > 0
    if chosen.any() and not chosen.all():
        assert older[chosen].min() >= older[~chosen].max()


def test_what_is_dense():
    """The first layers, the delta layers, and any layer with pages enough."""
    given = grouped(1, 96)
    truth = attend(given.x, visible(1, 96).expand(1, 4, -1, -1))
    cases = [(delta(), layer) for layer in (0, 1, 2, 5)]
    cases += [(delta(pages=12), 3), (delta(deltas=tuple(range(9))), 8)]
    for method, layer in cases:
        assert relative_error(given.run(method, layer=layer), truth) < BAND
    assert relative_error(given.run(delta(), layer=3), truth) > 1e-3


def test_layers_follow_the_nearest_delta_layer():
    """The choice changes at delta layers alone; layers before the first make their own."""
    shared, method = {}, delta(first=0)
    problems = [grouped(1, 96, seed) for seed in range(8)]
    levels = [
        method.plan(p.x, p.context(layer=n, state={"layers": shared})).level
        for n, p in enumerate(problems)
    ]
    assert levels[2].all() and levels[5].all()
    assert torch.equal(levels[3], levels[4]) and torch.equal(levels[6], levels[7])
    alone = [method.plan(p.x, p.context(layer=3)).level for p in problems]
    assert torch.equal(levels[3], alone[2]) and torch.equal(levels[6], alone[5])
    assert torch.equal(levels[0], alone[0]) and not torch.equal(levels[3], alone[3])
    # what an earlier pass has left is not taken: its sequence had another length
    later = grouped(1, 97, 3)
    again = method.plan(later.x, later.context(layer=3, state={"layers": shared})).level
    assert torch.equal(again, method.plan(later.x, later.context(layer=3)).level)


@dataclass(frozen=True)
class Counted:
    """A score that says at which layers it was asked."""

    score: object
    asked: tuple[list, ...] = ([],)

    def __call__(self, x, layout, ctx):
        self.asked[0].append((ctx.layer, x.k.shape[2]))
        return self.score(x, layout, ctx)


def test_a_model_scores_at_its_delta_layers():
    """Once per pass and length, also where samples of a batch have different lengths."""
    model, method = build(num_hidden_layers=4), delta(first=1, deltas=(1,))
    counted = Counted(method.score.score)
    method = replace(method, score=replace(method.score, score=counted))
    ids = torch.randint(2, 61, (2, 90))
    generate(text.enable(model, method), ids, left(ids), max_new_tokens=4)
    # layer 0 is dense, and comes before all sources: it asks, though all is kept
    asked = [n for n in counted.asked[0] if n[0]]
    assert asked == [(1, n) for step in range(3) for n in (91 + step, 68 + step)]
    assert [c.density < 0.99 for c in text.report(model).cells if c.step == 2] == [0, 0, 1, 1]


def test_places_are_the_largest_changes():
    g = torch.Generator().manual_seed(0)
    attention = [torch.rand(50, generator=g)] * 9
    other = torch.rand(50, generator=g)
    attention[4:] = [other] * 5
    attention[7:] = [attention[0] + 0.5 * other] * 2
    assert place(attention, count=2) == (4, 7)
    assert place(attention, count=1) == (4,)
    assert place(attention, count=9, apart=3) == (4, 7)


def cost(policy, share):
    """Return what a policy costs: full layers, then minus the overlap of the others."""
    full, overlap, source = 0, 0.0, 0
    for j, letter in enumerate(policy):
        if letter == "F":
            full, source = full + 1, j
        else:
            overlap -= share[source, j].item()
    return full, overlap


def allowed(policy, share, sensitive, theta):
    source = 0
    for j, letter in enumerate(policy):
        if letter == "F":
            source = j
        elif j in sensitive or share[source, j] < theta:
            return False
    return policy[0] == policy[-1] == "F"


@pytest.mark.parametrize("seed", range(4))
def test_the_layer_plan_is_the_best_of_all(seed):
    share = torch.rand(9, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sensitive, counts = (3, 6), []
    for theta in (0.0, 0.3, 0.6, 0.85, 1.1):
        found = plan_layers(share, sensitive, theta)
        every = ["".join(p) for p in product("FR", repeat=9)]
        legal = [p for p in every if allowed(p, share, sensitive, theta)]
        best = min(cost(p, share) for p in legal)
        assert found in legal
        full, overlap = cost(found, share)
        assert full == best[0] and abs(overlap - best[1]) < BAND
        counts.append(full)
    assert all(a <= b for a, b in pairwise(counts)) and counts[-1] == 9


@pytest.mark.parametrize(("queries", "keys"), [(96, 96), (30, 101), (1, 90)])
def test_reusing_layers_see_what_the_full_one_found(queries, keys):
    shared = {}
    method = dit_sparse.get("hylra", tokens=3 * PAGE, block=PAGE, policy="FRR")
    one, two = grouped(queries, keys), grouped(queries, keys, seed=1)
    levels = [
        method.plan(p.x, p.context(layer=n, state={"layers": shared})).level
        for n, p in ((3, one), (4, two), (5, two))
    ]
    rows = torch.nn.functional.pad(weights(one.x), (0, -keys % PAGE, 0, -queries % PAGE))
    size = min(PAGE, queries)
    mass = rows[:, :, : -(-queries // size) * size].unflatten(2, (-1, size)).sum(3)
    mass = mass.unflatten(3, (-1, PAGE)).sum(4)
    for b, h, m in product(range(1), range(4), range(mass.shape[2])):
        last = min(m * size + size, queries) + keys - queries
        own = set(range((m * size + keys - queries) // PAGE, (last - 1) // PAGE + 1))
        order = mass[b, h, m].argsort(descending=True).tolist()
        best = [j for j in order if j not in own and j * PAGE < last][: 4 - len(own)]
        assert set(levels[1][b, h, m].nonzero()[:, 0].tolist()) == own | set(best)
    assert torch.equal(levels[1], levels[2])
    dense = attend(one.x, visible(queries, keys).expand(1, 4, -1, -1))
    assert relative_error(one.run(method, layer=6), dense) < BAND
    wide = dit_sparse.get("hylra", tokens=keys, block=PAGE)
    assert relative_error(one.run(wide, layer=1), dense) < BAND


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("delta", {"pages": 4, "recent": 5}, "recent=5"),
        ("delta", {"deltas": (-1,)}, "deltas"),
        ("delta", {"first": -1}, "first=-1"),
        ("hylra", {"policy": "RF"}, "policy='RF'"),
        ("hylra", {"tokens": 0}, "tokens=0"),
    ],
)
def test_refusals(name, params, words):
    with pytest.raises(ArgumentError, match=words):
        dit_sparse.get(name, **params)
