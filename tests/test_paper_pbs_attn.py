"""PBS-Attn (2510.21270): what its rules imply."""

from dataclasses import replace

import pytest
import torch

import dit_sparse
from dit_sparse.core import QKV
from dit_sparse.errors import ArgumentError
from dit_sparse.testing import Problem, relative_error
from tests.text_oracle import attend, problem, visible, weights

BLOCK, SEGMENT = 8, 32
# float64 sums of at most 300 terms
BAND = 1e-12
LENGTHS = [(160, 160), (150, 150), (45, 141)]


def method(**params):
    return dit_sparse.get("pbs_attn", **{"block": BLOCK, "segment": SEGMENT, **params})


def truth(plan, segment=SEGMENT):
    """Return the pairs that are seen, in the given order: own segments whole, earlier ones kept."""
    (rows, cols), kept = plan.layout, plan.level == 1
    order = torch.arange(cols.length).expand(*kept.shape[:2], -1)
    if cols.order is not None:
        order = cols.order.repeat_interleave(kept.shape[1] // cols.order.shape[1], 1)
    shift = cols.length - rows.length
    mask = torch.zeros(*kept.shape[:2], rows.length, cols.length, dtype=torch.bool)
    for i in range(rows.length):
        first = (i // BLOCK * BLOCK + shift) // segment * segment
        mask[:, :, i, first:] = True
        for j in range(-(-cols.length // BLOCK)):
            places = order[..., j * BLOCK : (j + 1) * BLOCK]
            # the segment of a block is the same before and after its sorting
            if j * BLOCK < first:
                new = torch.zeros_like(mask[:, :, i]).scatter(2, places, True)
                mask[:, :, i] |= new & kept[:, :, i // BLOCK, j, None]
    return mask & visible(rows.length, cols.length)


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("params", [{}, {"grouped": True}, {"score": "antidiagonal"}])
def test_the_output_is_attention_to_what_the_plan_keeps(queries, keys, params):
    given = problem(queries, keys, batch=2, heads=4)
    given = replace(given, x=QKV(given.x.q, given.x.k[:, ::2], given.x.v[:, ::2]))
    way = method(top_p=0.6, **params)
    plan = way.plan(given.x, given.context())
    assert plan.layout.kv.order.shape[1] == (2 if "grouped" in params else 4)
    for impl in ("reference", "torch"):
        assert relative_error(given.run(way, impl), attend(given.x, truth(plan))) < BAND
    assert plan.density() < 0.95


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("score", ["mean", "antidiagonal"])
def test_all_mass_is_dense(queries, keys, score):
    given = problem(queries, keys)
    mask = visible(queries, keys).expand(1, 2, -1, -1)
    out = given.run(method(top_p=1.0, score=score))
    assert relative_error(out, attend(given.x, mask)) < BAND


def test_the_order_is_that_of_the_last_queries():
    """Inside whole segments, by falling mass; the rest stays."""
    given = problem(150)
    order = method().plan(given.x, given.context()).layout.kv.order
    whole = 150 // SEGMENT * SEGMENT
    assert torch.equal(order[..., whole:], torch.arange(whole, 150).expand(1, 2, -1))
    segments = order[..., :whole].unflatten(2, (-1, SEGMENT))
    assert torch.equal(segments // SEGMENT, torch.arange(4)[:, None].expand_as(segments))
    logits = weights(given.x)[:, :, -BLOCK:, :whole]
    mass = (logits / logits.sum(-1, keepdim=True)).mean(2)
    ranked = mass.gather(2, order[..., :whole]).unflatten(2, (-1, SEGMENT))
    assert (ranked.diff(dim=-1) <= 0).all()


def test_no_earlier_block_holds_a_later_key():
    given = problem(160, 200)
    plan = method(top_p=0.9).plan(given.x, given.context())
    order, own = plan.layout.kv.order, plan.layout.own(segment=SEGMENT)
    last = torch.nn.functional.pad(order, (0, -200 % BLOCK)).unflatten(2, (-1, BLOCK)).amax(-1)
    first = 40 + torch.arange(0, 160, BLOCK)
    late = last[:, :, None] >= first[:, None]
    assert not ((plan.level == 1) & ~own & late).any()


def test_the_first_token_is_always_seen():
    given = problem(160)
    plan = method(top_p=0.01).plan(given.x, given.context())
    assert truth(plan)[..., 0].all()


def test_sorted_keys_need_fewer_blocks():
    """One heavy key in every 32: ordered they fill one block in 4 of a segment of 4 blocks."""
    n, segment = 512, 32
    g = torch.Generator().manual_seed(0)
    q = torch.randn(1, 1, n, 16, generator=g, dtype=torch.float64) * 0.1
    k = torch.randn(1, 1, n, 16, generator=g, dtype=torch.float64) * 0.1
    q[..., 0], k[..., 0] = 4.0, 0.0
    heavy = torch.arange(n) % 8 == 5
    k[:, :, heavy, 0] = 16.0
    given = Problem(None, QKV(q, k, k))
    kept = {}
    for name, size in (("sorted", segment), ("given", BLOCK)):
        plan = method(top_p=0.9, segment=size).plan(given.x, given.context())
        far = torch.arange(n // BLOCK)
        earlier = far[None] * BLOCK < far[:, None] * BLOCK // segment * segment
        kept[name] = ((plan.level == 1)[0, 0] & earlier).sum().item() / earlier.sum().item()
    # 4 heavy keys per segment: one block of four instead of all
    assert kept["sorted"] < 0.4 and kept["given"] > 0.8


def test_segments_of_one_block_change_nothing():
    given = problem(160)
    sorted_, plain = method(segment=BLOCK), method(segment=BLOCK)
    plan = sorted_.plan(given.x, given.context())
    out = sorted_.compute(given.x, plan, given.context())
    layout = plan.layout._replace(kv=replace(plan.layout.kv, order=None))
    other = plain.compute(given.x, replace(plan, layout=layout), given.context())
    assert relative_error(out, other) < BAND


def test_up_to_one_segment_is_dense():
    given = problem(SEGMENT)
    plan = method(top_p=0.1).plan(given.x, given.context())
    assert plan.layout.kv.order is None and plan.density() == 1


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"segment": 30}, "segment=30"),
        ({"block": 0}, "block=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"score": "max"}, "score='max'"),
    ],
)
def test_refusals(params, words):
    with pytest.raises(ArgumentError, match=words):
        method(**params)
    q, k, v = problem(64).x
    with pytest.raises(ArgumentError, match="causal=True"):
        dit_sparse.attention(q, k, v, method())
