"""AnchorAttention (2505.23520): what its rules imply, and attention to single keys."""

from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest
import torch

import dit_sparse
from dit_sparse.compute.stripes import Stripes
from dit_sparse.core import QKV, Layout, Plan
from dit_sparse.errors import ArgumentError
from dit_sparse.testing import relative_error, rounding_band
from tests.text_oracle import attend, problem, tokens, visible

BLOCK, STEP = 8, 3
GROUP = BLOCK * STEP
# float64 sums of at most 300 terms
BAND = 1e-12
LENGTHS = [(96, 96), (110, 110), (60, 131)]


def anchor(theta, **params):
    return dit_sparse.get("anchor", theta=theta, block=BLOCK, step=STEP, **params)


def grouped(queries, keys):
    given = problem(queries, keys, heads=4)
    return replace(given, x=QKV(given.x.q, given.x.k[:, ::2], given.x.v[:, ::2]))


def windows(queries, keys, initial=BLOCK):
    """Return the pairs of the first keys and of the own group; rows without a group see all."""
    mask, shift = visible(queries, keys), keys - queries
    for i in range(queries // GROUP * GROUP):
        mask[i, initial : max(initial, i // GROUP * GROUP + shift)] = False
    return mask


def rule(x, theta, initial=BLOCK):
    """Return the pairs seen, by the rule for one key of one group."""
    queries, keys = x.q.shape[2], x.k.shape[2]
    shift, scale = keys - queries, x.q.shape[-1] ** -0.5
    k = x.k.repeat_interleave(2, 1)
    logits = scale * x.q @ k.mT
    seen = windows(queries, keys, initial)
    best = logits.masked_fill(~seen, -inf).amax(-1)
    mask = seen.expand(*logits.shape).clone()
    for g in range(queries // GROUP):
        rows, far = slice(g * GROUP, (g + 1) * GROUP), slice(initial, g * GROUP + shift)
        mean = logits[:, :, rows, far].unflatten(2, (STEP, BLOCK)).mean(3)
        known = best[:, :, rows].unflatten(2, (STEP, BLOCK)).mean(3)[..., None]
        mask[:, :, rows, far] |= (mean + theta >= known).any(2, keepdim=True)
    return mask


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("theta", [0.5, 2.0])
def test_keys_near_the_anchor_are_kept(queries, keys, theta):
    given = grouped(queries, keys)
    plan, mask = anchor(theta).plan(given.x, given.context()), rule(given.x, theta)
    assert torch.equal(tokens(plan), mask)
    for impl in ("reference", "torch"):
        assert relative_error(given.run(anchor(theta), impl), attend(given.x, mask)) < BAND
    far = ~windows(queries, keys) & visible(queries, keys)
    share = (mask & far).sum() / (far.sum() * 4)
    assert 0.01 < share < 0.99


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_the_ends_of_theta(queries, keys):
    """Everything, and the windows alone."""
    given = grouped(queries, keys)
    for theta, mask in ((inf, visible(queries, keys)), (-inf, windows(queries, keys))):
        mask = mask.expand(1, 4, -1, -1)
        assert relative_error(given.run(anchor(theta)), attend(given.x, mask)) < BAND


def test_a_larger_theta_keeps_more():
    given = grouped(96, 96)
    levels = [anchor(t).plan(given.x, given.context()).level for t in (-1, 0, 1, 2, 4, 8)]
    assert all(((b - a) >= 0).all() for a, b in pairwise(levels))


@pytest.mark.parametrize("initial", [1, 20, 40])
def test_the_number_of_first_keys(initial):
    given = grouped(96, 120)
    plan = anchor(0.5, initial=initial).plan(given.x, given.context())
    assert torch.equal(tokens(plan), rule(given.x, 0.5, initial))


def split(plan):
    stage = Stripes(BLOCK)
    whole, rest = stage._split(plan.level == 1, plan)
    cut = stage._cut(plan, plan.level)
    keys = plan.layout.kv.length
    ends = torch.arange(BLOCK, keys + BLOCK, BLOCK).clamp(max=keys)
    bounds = torch.cat((ends[:1] * 0, ends)) if cut.offsets is None else cut.offsets[0, 0]
    return whole, rest, bounds.diff().long()


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_no_key_is_listed_twice_or_unseen(queries, keys):
    """Blocks and columns are disjoint, cover the plan, and columns lie before their queries."""
    given = grouped(queries, keys)
    plan = anchor(1.0).plan(given.x, given.context())
    whole, rest, sizes = split(plan)
    blocks = whole.repeat_interleave(sizes, 3)
    assert blocks.shape == rest.shape and not (blocks & rest).any()
    assert torch.equal(tokens(plan), tokens(plan, blocks | rest))
    first = torch.arange(0, queries, GROUP)[:, None] + keys - queries
    assert not (rest & (torch.arange(keys) >= first)).any()
    assert blocks.any() and rest.any()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("queries", "keys"), [(32, 32), (19, 45), (3, 40)])
def test_single_keys_of_any_choice(share, queries, keys):
    """The stage alone, also in Triton: any past keys, and those of the own blocks."""
    given = grouped(queries, keys)
    layout = Layout.uniform(given.x, BLOCK, 1)
    level = torch.rand(1, 4, layout.q.count, keys) < share
    level = level | layout.own()
    plan = Plan(layout, (level & (layout_visible(layout))).to(torch.int8), causal=True)
    truth = attend(given.x, tokens(plan))
    for impl in ("reference", "torch"):
        assert relative_error(Stripes(BLOCK)(given.x, plan, given.context(impl)), truth) < BAND
    single = given.to(torch.float32)
    eager, out = (
        Stripes(BLOCK)(single.x, plan, single.context(impl)) for impl in ("reference", "triton")
    )
    bound = 2 * relative_error(eager, truth) + 4 * rounding_band(torch.float32)
    assert relative_error(out, truth) < bound


def layout_visible(layout):
    """Return which keys are seen by any query of a block."""
    last = (torch.arange(layout.q.count) + 1) * layout.q.size - 1
    last = last.clamp(max=layout.q.length - 1) + layout.kv.length - layout.q.length
    return torch.arange(layout.kv.length) <= last[:, None]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"theta": float("nan")}, "theta=nan"),
        ({"theta": 1.0, "initial": -1}, "initial=-1"),
        ({"theta": 1.0, "step": 0}, "step=0"),
    ],
)
def test_refusals(params, words):
    with pytest.raises(ArgumentError, match=words):
        dit_sparse.get("anchor", **params)
    given = grouped(96, 96)
    with pytest.raises(ArgumentError, match="causal=True"):
        dit_sparse.attention(*given.x, "anchor")
    plan = Plan(Layout.uniform(given.x, 12, 1), torch.ones(1, 4, 8, 96, dtype=torch.int8))
    with pytest.raises(ArgumentError, match="multiple of 8"):
        Stripes(BLOCK)(given.x, plan, given.context())
