"""How many launches a warm call takes to choose its blocks and to attend to them."""

import pytest
import torch

import dit_sparse
from dit_sparse import Context, Grid
from dit_sparse.core import QKV
from tests.launches import launches

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts in the interpreter")
GRID = Grid(2, 8, 16)
# fmt: off
# the plan: keys and values move with the first launch, lists come with the choice
PLANS = {
    "sla": {"token_kernel": 1, "score_kernel": 1, "top_kernel": 1},
    "draft": {"token_kernel": 1, "score_kernel": 1, "edge_kernel": 1,
        # the threshold of a whole head: four digits, each settled by the next pass
        "aten zeros": 1, "search_kernel": 5},
    "pisa": {"token_kernel": 1, "covariance_kernel": 1, "aten sum": 1, "score_kernel": 1,
        "top_kernel": 1},
    "sparse_vdit": {"aten ge": 1},
}
# attention; where nothing was pooled, lists and moved keys too
CALLS = {
    "sla": {"attend_kernel": 1},
    "draft": {"attend_kernel": 1},
    # who sees a column, its bias log n, the mean covariance
    "pisa": {"aten eq": 1, "aten arange": 1, "aten clamp_": 1, "aten sub": 1, "aten _to_copy": 1,
        "aten log": 1, "aten div": 1, "terms_kernel": 1, "attend_kernel": 1},
    "sparse_vdit": {"pack_kernel": 1, "token_kernel": 1, "attend_kernel": 1},
}
# fmt: on


@pytest.mark.parametrize("name", PLANS)
def test_launches(name):
    method, x = dit_sparse.get(name, keep=0.25), QKV(*torch.randn(3, 1, 2, GRID.tokens, 16))
    for _ in range(2):
        # what depends on the grid alone is made at the first call
        ctx = Context(grid=GRID, impl="triton")
        with launches() as planned:
            plan = method.plan(x, ctx)
        with launches() as called:
            method.compute(x, plan, ctx)
    assert planned == PLANS[name]
    assert name not in CALLS or called == CALLS[name]
