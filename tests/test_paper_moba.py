"""MoBA (2502.13189) and block top-k decoding (2506.05333): choices of single queries."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import dit_sparse
from dit_sparse.core import QKV, Heads
from dit_sparse.errors import ArgumentError
from dit_sparse.testing import Problem, relative_error
from tests.text_oracle import attend, problem, tokens, visible, weights

BLOCK = 16
# float64 sums of at most 300 terms
BAND = 1e-12
LENGTHS = [(160, 160), (101, 101), (37, 150)]


def moba(k, **params):
    return dit_sparse.get("moba", topk=k, block=BLOCK, **params)


def chosen(x, k, keys=None):
    """Choose blocks one query at a time; return the pairs seen [B, H, Sq, Skv]."""
    queries, total = x.q.shape[2], x.k.shape[2]
    keys = (x.k if keys is None else keys).repeat_interleave(x.q.shape[1] // x.k.shape[1], 1)
    mask = torch.zeros(*x.q.shape[:3], total, dtype=torch.bool)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, x.q.shape[:3])).tolist():
        own = (i + total - queries) // BLOCK
        gates = [
            (float(x.q[b, h, i] @ keys[b, h, j * BLOCK : (j + 1) * BLOCK].mean(0)), j)
            for j in range(own)
        ]
        for j in [own, *(j for _, j in sorted(gates, reverse=True)[: k - 1])]:
            mask[b, h, i, j * BLOCK : (j + 1) * BLOCK] = True
    return mask & visible(queries, total)


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("k", [1, 3])
def test_every_query_chooses_for_itself(queries, keys, k):
    given = problem(queries, keys, heads=4)
    given = replace(given, x=QKV(given.x.q, given.x.k[:, ::2], given.x.v[:, ::2]))
    mask, plan = chosen(given.x, k), moba(k).plan(given.x, given.context())
    assert torch.equal(tokens(plan), mask)
    for impl in ("reference", "torch"):
        assert relative_error(given.run(moba(k), impl), attend(given.x, mask)) < BAND
    # exactly k blocks, or all that there are
    own = (torch.arange(queries) + keys - queries) // BLOCK
    assert torch.equal(plan.level.sum(-1)[0, 0], (own + 1).clamp(max=k))


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_as_many_blocks_as_there_are_is_dense(queries, keys):
    given = problem(queries, keys)
    out = given.run(moba(-(-keys // BLOCK)))
    assert relative_error(out, attend(given.x, visible(queries, keys).expand(1, 2, -1, -1))) < BAND


def test_one_softmax_equals_two_merged_by_their_sums():
    """The authors' form: the own chunk and the routed blocks apart, joined by log-sum-exp."""
    x = problem(160).x
    mask, k = chosen(x, 3), x.k
    at = torch.arange(160) // BLOCK
    own = (at[:, None] == at) & visible(160, 160)
    logits = x.q @ k.mT * x.q.shape[-1] ** -0.5
    parts = [logits.masked_fill(~m, float("-inf")) for m in (mask & own, mask & ~own)]
    lse = torch.stack([p.logsumexp(-1) for p in parts])
    share = (lse - lse.logsumexp(0)).exp()
    outs = torch.stack([p.softmax(-1).nan_to_num(0) @ x.v for p in parts])
    merged = (share[..., None] * outs).sum(0)
    given = Problem(None, x)
    assert relative_error(given.run(moba(3)), merged) < BAND


def test_equal_keys_in_a_block_make_the_choice_exact():
    x = problem(160).x
    k = x.k.unflatten(2, (-1, BLOCK)).mean(3, keepdim=True).expand(-1, -1, -1, BLOCK, -1)
    x = x._replace(k=k.flatten(2, 3))
    level = moba(2).plan(x, Problem(None, x).context()).level
    mass = weights(x).unflatten(3, (-1, BLOCK)).sum(4)
    for i in range(BLOCK, 160):
        best = mass[:, :, i, : i // BLOCK].argmax(-1)
        assert level[:, :, i].gather(-1, best[..., None]).all()


@pytest.mark.parametrize("width", [3, 5])
def test_convolved_keys_route_and_are_not_attended_to(width, tmp_path):
    given = problem(120, heads=4)
    x = QKV(given.x.q, given.x.k[:, ::2], given.x.v[:, ::2])
    given = replace(given, x=x)
    channels = 2 * x.k.shape[3]
    weight = torch.randn(channels, width)
    save_file({"layers.3.key_conv.weight": weight}, tmp_path / "conv.safetensors")
    method = moba(2, weights=str(tmp_path / "conv.safetensors"))
    ctx = given.context(layer=3, weights={"key_conv.weight": weight})
    flat, mixed = x.k.transpose(1, 2).flatten(2), 0
    for i in range(width):
        past = F.pad(flat, (0, 0, i, 0))[:, : flat.shape[1]]
        mixed = mixed + past * weight[:, width - 1 - i].double()
    routed = (flat + F.silu(mixed)).unflatten(2, (2, -1)).transpose(1, 2)
    mask = chosen(x, 2, routed)
    assert not torch.equal(mask, chosen(x, 2))
    assert torch.equal(tokens(method.plan(x, ctx)), mask)
    assert relative_error(method(x, ctx), attend(x, mask)) < BAND
    with pytest.raises(ArgumentError, match=r"key_conv\.weight.*has shape"):
        moba(2).plan(x, given.context(weights={"key_conv.weight": weight[:4]}))


def test_a_process_convolves_the_keys_of_its_own_heads():
    given = problem(120, heads=6)
    x, weight = QKV(given.x.q, given.x.k[:, ::2], given.x.v[:, ::2]), torch.randn(3 * 8, 3)
    own, learned = QKV(x.q[:, 2:], x.k[:, 1:], x.v[:, 1:]), {"key_conv.weight": weight}
    whole, part = (
        moba(2).plan(t, given.context(weights=learned, heads=heads)).level
        for t, heads in ((x, None), (own, Heads(2, 6)))
    )
    assert torch.equal(part, whole[:, 2:])


def test_gradients_are_those_of_masked_attention():
    x = problem(100).x
    leaves, again = ([t.clone().requires_grad_() for t in x] for _ in range(2))
    weight = torch.randn_like(x.q)
    out = Problem(None, QKV(*leaves)).run(moba(2), "torch")
    ours = torch.autograd.grad((out * weight).sum(), leaves)
    masked = attend(QKV(*again), chosen(x, 2))
    truth = torch.autograd.grad((masked * weight).sum(), again)
    assert all(relative_error(a, b) < BAND for a, b in zip(ours, truth, strict=True))


def pages(n, **params):
    return dit_sparse.get("block_topk", pages=n, page=BLOCK, **params)


@pytest.mark.parametrize(("queries", "keys"), [(1, 160), (1, 151), (4, 131)])
def test_a_group_shares_its_best_pages(queries, keys):
    given = problem(queries, keys, heads=4)
    x = QKV(given.x.q, given.x.k[:, ::2], given.x.v[:, ::2])
    means = [x.k[:, :, j : j + BLOCK].mean(2) for j in range(0, keys, BLOCK)]
    gate = (x.q.unflatten(1, (2, 2)) @ torch.stack(means, 2)[:, :, None].mT).mean(2)
    level = pages(3).plan(x, given.context()).level
    for i in range(queries):
        own = (i + keys - queries) // BLOCK
        best = gate[:, :, i, :own].topk(3).indices
        expected = torch.zeros(1, 2, -(-keys // BLOCK)).scatter(2, best, 1)
        expected[..., own] = 1
        assert torch.equal(level[:, :, i], expected.repeat_interleave(2, 1).to(torch.int8))
    # a positive factor changes no rank
    scaled = pages(3).plan(x._replace(q=3 * x.q), given.context()).level
    assert torch.equal(scaled, level)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_enough_pages_are_dense(impl):
    given = problem(2, 150)
    out = given.run(pages(9), impl)
    assert relative_error(out, attend(given.x, visible(2, 150).expand(1, 2, -1, -1))) < BAND
    assert pages(9).plan(given.x, given.context()).density() == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: moba(0), "topk=0"),
        (lambda: pages(0), "pages=0"),
        (lambda: dit_sparse.get("block_topk", page=0), "page=0"),
        (lambda: moba(1, weights=3), "weights=3"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ArgumentError, match=words):
        call()
