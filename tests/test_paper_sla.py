"""SLA (2509.24006) and SLA2 (2602.12675): their properties, against a token-level oracle."""

import pytest
import torch
from safetensors.torch import save_file

import dit_sparse
from dit_sparse.arranged import arranged
from dit_sparse.core import QKV, Context
from dit_sparse.errors import ArgumentError
from dit_sparse.testing import relative_error
from tests.sla_oracle import BLOCK, CLOSE, DIM, PHI, SMALL, branch, draw, oracle, projection, run


@pytest.mark.parametrize("tokens", [208, 203, 193])
@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("variant", ["masked", "global"])
def test_equals_the_oracle(tokens, phi, variant):
    """Ragged ends too: what pads the last block enters no mean, state or output."""
    x, weights = draw(tokens), projection()
    for block in (BLOCK, (32, 16), (16, 24)):
        given = {"phi": phi, "variant": variant, "block": block}
        out, truth = run(*x, weights, **given), oracle(*x, weights, **given)
        assert relative_error(out, truth) < CLOSE
        assert relative_error(truth, oracle(*x, **given)) > 0.1


def test_sla2_equals_the_oracle():
    x, g = draw(203), torch.Generator().manual_seed(2)
    maps = {f"proj_{n}.weight": torch.randn(DIM, DIM, generator=g) for n in "qk"}
    for shape in ((13,), (2, 13), (1,)):
        weights = {**maps, "alpha": torch.rand(shape, generator=g)}
        full = {**maps, "alpha": weights["alpha"].expand(2, 13)}
        truth = oracle(*x, full, variant="sla2")
        assert relative_error(run(*x, weights, variant="sla2"), truth) < CLOSE
    with pytest.raises(ArgumentError, match=r"'alpha' .* \[12\]; .* \[13\]"):
        run(*x, {**maps, "alpha": torch.rand(12)}, variant="sla2")


@pytest.mark.parametrize("variant", ["masked", "global"])
def test_zero_projection_is_block_sparse_attention(variant):
    x, weights = draw(), projection(scale=0.0)
    for keep in (0.05, 0.4, 1.0):
        out = run(*x, weights, keep=keep, variant=variant)
        assert torch.equal(out, run(*x, keep=keep, variant=variant))
        assert relative_error(out, oracle(*x, keep=keep)) < CLOSE
    assert relative_error(out, dit_sparse.attention(*x, "dense")) < CLOSE


def test_zero_projection_still_learns():
    """Its gradient is not zero; that of the phi path is, and what q, k, v get is the sparse one."""
    weights = {n: t.requires_grad_() for n, t in projection(scale=0.0).items()}
    with_branch, without = ([t.clone().requires_grad_() for t in draw()] for _ in range(2))
    for x, given in ((with_branch, weights), (without, None)):
        run(*x, given).square().sum().backward()
    assert all(t.grad.abs().max() > 1 for t in weights.values())
    for a, b in zip(with_branch, without, strict=True):
        assert relative_error(a.grad, b.grad) < CLOSE


def test_without_marginal_blocks_the_branch_is_exactly_zero():
    x, weights = draw(), projection()
    weights["proj_l.weight"].requires_grad_()
    for params in ({"keep": 1.0}, {"keep": 0.7, "negligible": 0.4}):
        out = run(*x, weights, **params)
        assert torch.equal(out.detach(), run(*x, **params) + weights["proj_l.bias"])
        (grad,) = torch.autograd.grad(out.sum(), weights["proj_l.weight"])
        assert (grad == 0).all()


@pytest.mark.parametrize(
    ("variant", "band"), [("masked", CLOSE), ("sla2", CLOSE), ("global", 1e-5)]
)
def test_constant_values(variant, band):
    """O_s = O_l = c, up to global's 1e-5 in a denominator above 1."""
    q, k, _ = draw()
    c = torch.randn(DIM, dtype=torch.float64)
    weights = projection()
    truth = c + weights["proj_l.weight"].double() @ c + weights["proj_l.bias"]
    if variant == "sla2":
        eye, truth = torch.eye(DIM), c
        weights = {"proj_q.weight": eye, "proj_k.weight": eye, "alpha": torch.rand(13)}
    out = run(q, k, c.expand_as(q), weights, variant=variant)
    assert relative_error(out, truth.expand_as(out)) < band


def test_the_classes_ignore_shift_scale_and_softmax():
    q, k, v = draw()
    method = dit_sparse.get("sla", **SMALL)
    linear = method.compute.remainder

    def classes(q, k):
        x, ctx = QKV(q, k, v), Context(impl="torch")
        plan = method.plan(x, ctx)
        return plan.level, linear.marginal(arranged(x, plan.layout, ctx), plan, ctx)

    level, marginal = classes(q, k)
    assert (level.sum(-1) == 2).all() and (marginal.sum(-1) == 13 - 2 - 3).all()
    shift = torch.randn(DIM, dtype=torch.float64)
    for other in (classes(q, k + shift), classes(3 * q, 0.5 * k)):
        assert torch.equal(other[0], level) and torch.equal(other[1], marginal)
    means = (t.unflatten(2, (13, 16)).mean(3) for t in (q, k))
    order = torch.einsum("bhmd,bhnd->bhmn", *means).softmax(-1).argsort(-1, descending=True)
    assert (level.gather(-1, order) == torch.tensor([1] * 2 + [0] * 11)).all()
    assert (
        marginal.gather(-1, order) == torch.tensor([False] * 2 + [True] * 8 + [False] * 3)
    ).all()
    # the plan alone is enough: a new context ranks again
    plan = method.plan(QKV(q, k, v), Context(impl="torch"))
    ctx = Context(impl="torch")
    moved = arranged(QKV(q, k, v), plan.layout, ctx)
    assert torch.equal(linear.marginal(moved, plan, ctx), marginal)
    assert dit_sparse.get("sla").select.capacity(512) == 25


@pytest.mark.parametrize("variant", ["masked", "global", "sla2"])
def test_gradients(variant, tmp_path):
    """With the choice frozen, those of the dense masked oracle; ragged, through `attention`."""
    weights = projection()
    if variant == "sla2":
        eye = torch.eye(DIM)
        weights = {"proj_q.weight": eye, "proj_k.weight": -eye, "alpha": torch.rand(13)}
    path = tmp_path / "w.safetensors"
    save_file({f"0.{n}": t for n, t in weights.items()}, path)
    x, y = ([t.clone().requires_grad_() for t in draw(203)] for _ in range(2))
    g = torch.randn(1, 2, 203, DIM, dtype=torch.float64)
    params = {**SMALL, "variant": variant, "weights": str(path), "impl": "torch"}
    out, truth = dit_sparse.attention(*x, "sla", **params), oracle(*y, weights, variant=variant)
    assert relative_error(out.detach(), truth.detach()) < CLOSE
    out.backward(g)
    truth.backward(g)
    for a, b in zip(x, y, strict=True):
        assert relative_error(a.grad, b.grad) < 1e-10


def test_order_of_tokens_is_free_where_it_should_be():
    q, k, v = draw()
    x, weights, level = QKV(q, k, v), projection(), torch.zeros(1, 2, 13, 13, dtype=torch.int8)
    a = branch(x, level, scope="all")
    any_order = torch.randperm(208)
    moved = QKV(q, k[:, :, any_order], v[:, :, any_order])
    assert relative_error(branch(moved, level, scope="all"), a) < CLOSE
    inside = (torch.arange(208).view(13, 16)[:, torch.randperm(16)]).flatten()
    blocks = (torch.randperm(13)[:, None] * 16 + torch.arange(16)).flatten()
    for variant in ("masked", "global"):
        truth = run(*x, weights, variant=variant)
        for order in (inside, blocks):
            out = run(q, k[:, :, order], v[:, :, order], weights, variant=variant)
            assert relative_error(out, truth) < CLOSE
        out = run(*(t[:, :, inside] for t in x), weights, variant=variant)
        assert relative_error(out, truth[:, :, inside]) < CLOSE


def test_sla2_limits():
    x, eye = draw(), torch.eye(DIM)
    maps = {"proj_q.weight": eye, "proj_k.weight": eye}
    one = {**maps, "alpha": torch.ones(13)}
    # alpha = 1: sparse only; identity maps, and no weights at all: SLA's router
    assert relative_error(run(*x, one, variant="sla2"), run(*x)) < CLOSE
    assert torch.equal(run(*x, variant="sla2"), run(*x))
    # all critical: nothing is left to mix in
    half = {**maps, "alpha": torch.full((13,), 0.5)}
    assert relative_error(run(*x, half, variant="sla2", keep=1.0), run(*x, keep=1.0)) < CLOSE
    # q = 0: O_l is the softmax over the complement, and alpha = the kept mass gives dense attention
    q, k, v = torch.zeros_like(x[0]), x[1], x[2]
    for keep in (1, 4, 12):
        mass = {**maps, "alpha": torch.full((13,), keep / 13, dtype=torch.float64)}
        out = run(q, k, v, mass, variant="sla2", keep=keep / 13)
        assert relative_error(out, v.mean(2, keepdim=True).expand_as(v)) < CLOSE


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"variant": "paper"}, "variant='paper'"),
        ({"phi": "hedgehog"}, "phi='hedgehog'"),
        ({"negligible": 1.0}, "negligible=1.0"),
        ({"negligible": -0.1}, "negligible=-0.1"),
        ({"keep": 0}, "keep=0"),
        ({"block": 64}, "block=64"),
        ({"block": (64, 0)}, "block=0"),
        ({"block": (64, 64, 64)}, "block=(64, 64, 64)"),
    ],
)
def test_bad_parameters(params, word):
    with pytest.raises(ArgumentError) as caught:
        dit_sparse.get("sla", **params)
    assert word in str(caught.value) and "\n" not in str(caught.value)
