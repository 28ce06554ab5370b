"""What compute takes from the stages before: the same numbers, and gradients all the same."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import dit_sparse
from dit_sparse.compute import remainder
from dit_sparse.compute.attend import dense
from dit_sparse.core import QKV, Context, Grid
from dit_sparse.testing import Problem, relative_error, rounding_band
from tests.text_oracle import attend, visible

GRID = Grid(3, 5, 6, text=7)
# few tokens for many clusters, of equal tokens in part: some stay empty
METHOD = dit_sparse.get("svg_ear", q_clusters=5, k_clusters=60, cold_iters=3, keep=0.3)


def problem(dtype=torch.float64):
    made = Problem.make(GRID, heads=4).to(dtype)
    q, k, v = made.x
    return replace(
        made, x=QKV(q, k[:, ::2].repeat_interleave(2, 2)[:, :, : GRID.tokens], v[:, ::2])
    )


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_centroids_of_the_score_stand_for_pooled_means(impl, dtype):
    here = problem(dtype)
    ctx = here.context(impl)
    plan = METHOD.plan(here.x, ctx)
    sizes = plan.layout.kv.sizes()[..., : plan.layout.kv.video]
    assert (sizes == 0).any() and (plan.level == 0).any()
    again = METHOD.compute(here.x, plan, here.context(impl))
    with mock.patch.object(remainder, "pool_blocks", side_effect=AssertionError("pooled again")):
        out = METHOD.compute(here.x, plan, ctx)
    # sums of a GPU have no fixed order
    assert relative_error(out, again) <= rounding_band(dtype) and out.isfinite().all()


def test_gradients_do_not_see_the_score():
    """Centroids are constants; a gradient flows through means of its own."""
    grads = []
    for shared in (True, False):
        here = problem()
        leaves = [t.clone().requires_grad_() for t in here.x]
        x, ctx = QKV(*leaves), here.context("torch")
        plan = METHOD.plan(x, ctx)
        out = METHOD.compute(x, plan, ctx if shared else here.context("torch"))
        grads.append(torch.autograd.grad(out.square().sum(), leaves))
    for shared, own in zip(*grads, strict=True):
        assert own.any() and relative_error(shared, own) < 1e-12


@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (9, 9), (4, 9), (1, 1)])
def test_dense_is_causal_from_the_last_key(queries, keys):
    """A mask is written where neither PyTorch's own order nor a single query does without."""
    q, k, v = problem().x
    x = QKV(q[:, :, keys - queries : keys], k[:, :, :keys], v[:, :, :keys])
    kernel = "scaled_dot_product_attention"
    with mock.patch.object(F, kernel, wraps=getattr(F, kernel)) as called:
        out = dense(x, Context(causal=True))
    assert relative_error(out, attend(x, visible(queries, keys))) < 1e-12
    assert (called.call_args.kwargs["attn_mask"] is not None) == (1 < queries < keys)
