"""The stages that stop at a share of the mass, and at the threshold of a head."""

import pytest
import torch

from dit_sparse.core import Context
from dit_sparse.errors import ArgumentError
from dit_sparse.select.topk import HeadTopK
from dit_sparse.select.topp import TopP
from tests.kernel_cases import BOTH, DEVICE

pytestmark = pytest.mark.usefixtures("poison")
INF, NAN = float("inf"), float("nan")


@BOTH
def test_head_topk_counts(impl):
    """Without ties: all but the dropped, the largest of them, and rows else left empty."""
    score, ctx = torch.randn(1, 2, 9, 12, device=DEVICE), Context(impl=impl)
    for keep in (0.05, 0.25, 0.9):
        drop = int((1 - keep) * 108 + 1e-6)
        level = HeadTopK(keep)(score, None, ctx)
        edge = score.flatten(2).sort(-1).values[..., drop - 1]
        empty = (score.amax(-1) < edge[..., None]).sum(-1)
        assert torch.equal(level.flatten(2).sum(-1), 108 - drop + 1 + empty)


@BOTH
@pytest.mark.parametrize("top_p,min_keep", [(0.9003, 0.0), (0.5003, 0.4), (0.0103, 0.29)])
def test_top_p(top_p, min_keep, impl):
    """The smallest best prefix that reaches top_p, the crossing block included, and the floor."""
    count = torch.randint(0, 20, (1, 1, 4, 100), device=DEVICE).double()
    count[0, 0, 0] = 0.0
    count[0, 0, 0, 41] = 1.0
    score = (count / count.sum(-1, keepdim=True)).float()
    level = TopP(top_p, min_keep)(score, None, Context(impl=impl))
    floor = max(1, int(min_keep * 100 + 1e-6))
    for counted, got in zip(count[0, 0].cpu(), level[0, 0], strict=True):
        goal, mass, want = top_p * counted.sum().item(), 0.0, set()
        for j in counted.argsort(descending=True, stable=True).tolist():
            if counted[j] and (len(want) < floor or mass < goal):
                want.add(j)
                mass += counted[j].item()
        assert set(got.nonzero().flatten().tolist()) == want


@BOTH
def test_top_p_never_keeps_the_forbidden(impl):
    """-inf is never kept and 0 only at top_p=1, where the limit is dense; NaN shows."""
    score = torch.tensor([[[[0.5, 0.0, -INF, 0.5], [1e-30, 1.0, 0.0, -INF]]]], device=DEVICE)
    ctx = Context(impl=impl)
    for top_p, want in (
        (0.4, [[1, 0, 0, 0], [0, 1, 0, 0]]),
        (0.999, [[1, 0, 0, 1], [0, 1, 0, 0]]),
        (1.0, [[1, 1, 0, 1], [1, 1, 1, 0]]),
    ):
        assert TopP(top_p)(score, None, ctx).tolist() == [[want]]
    assert TopP(0.4, min_keep=1.0)(score, None, ctx).tolist() == [[[[1, 0, 0, 1], [1, 1, 0, 0]]]]
    score[0, 0, 0, 2] = NAN
    assert TopP(0.4)(score, None, ctx)[0, 0].tolist() == [[1, 0, 1, 1], [0, 1, 0, 0]]
    assert TopP(0.5).capacity(10) is None


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: TopP(0.0), ["top_p=0.0", "at most 1"]),
        (lambda: TopP(1.5), ["top_p=1.5"]),
        (lambda: TopP("much"), ["top_p='much'"]),
        (lambda: TopP(0.9, min_keep=-0.1), ["min_keep=-0.1", "0 to 1"]),
        (lambda: TopP(0.9, min_keep=2), ["min_keep=2"]),
    ],
)
def test_bad_stages(call, words):
    with pytest.raises(ArgumentError) as caught:
        call()
    assert all(w in str(caught.value) for w in words) and "\n" not in str(caught.value)
