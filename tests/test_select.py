"""Cutting ranked entries by budgets, per row and per head."""

import pytest
import torch

from dit_sparse.kernels.select import budget_classes, head_budget, head_kth
from tests.kernel_cases import BOTH, DEVICE

pytestmark = pytest.mark.usefixtures("poison")
INF, NAN = float("inf"), float("nan")


def grid(*shape, low=0, high=16):
    """Draw multiples of 1/64: their sums are exact, so that no rounding excuses a difference."""
    return torch.randint(low, high, shape, device=DEVICE) / 64.0


def brute_classes(score, budgets, weight, floors, inclusive):
    """Rank one entry at a time and count the budgets it comes too late for."""
    out = torch.zeros_like(score, dtype=torch.int8)
    weight = torch.ones_like(score) if weight is None else weight.expand_as(score)
    budgets = torch.as_tensor(budgets, device=score.device).expand(*score.shape[:3], -1)
    for place in torch.cartesian_prod(*map(torch.arange, score.shape[:3])).tolist():
        s, w, limits = (x[tuple(place)].tolist() for x in (score, weight, budgets))
        mass = 0.0
        for rank, j in enumerate(sorted(range(len(s)), key=lambda i: (-s[i], i))):
            upto = mass + w[j]
            for t, limit in enumerate(limits):
                past = upto > limit if inclusive else mass >= limit
                out[(*place, j)] += past and rank >= (floors[t] if floors else 0)
            mass = upto
    return out


@BOTH
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize(
    "rows,n,budgets,weighted,floors",
    [
        ((2, 1, 2), 37, (5,), None, None),
        ((2, 1, 1), 37, (0, 4, 9.5, 40), None, (0, 6, 6, 6)),
        ((1, 2, 1), 50, (0.5, 1.25, 2.0), "shared", (3, 3, 20)),
        ((2, 1, 1), 16, tuple(range(8)), "count", None),
        ((1, 1, 1), 1, (1,), "row", (1,)),
        ((1, 2, 2), 37, "shared", "row", None),
        ((2, 1, 2), 37, "row", None, (0, 2)),
    ],
)
def test_classes(rows, n, budgets, weighted, floors, inclusive, impl):
    """Ranked one by one: signs, ties, both zeros, infinities; every form of weight and budget."""
    score = torch.randn(*rows, n, device=DEVICE).mul(2).round()
    score[-1, -1, -1, ::3], score[0, 0, 0, ::2], score[0, 0, 0, n // 2] = -INF, -0.0, INF
    weight = {
        None: None,
        "row": grid(*rows, n),
        "shared": grid(1, 2, 1, n),
        "count": torch.randint(0, 3, (2, 1, 1, n), device=DEVICE),
    }[weighted]
    if budgets == "shared":
        budgets = torch.tensor([0.25, 1.0], device=DEVICE).view(1, 1, 1, 2)
    elif budgets == "row":
        budgets = grid(*rows, 2, high=640).cumsum(-1)
    got = budget_classes(score, budgets, weight, floors=floors, inclusive=inclusive, impl=impl)
    assert got.dtype == torch.int8
    assert torch.equal(got, brute_classes(score, budgets, weight, floors, inclusive))


@BOTH
def test_a_row_with_a_nan_stays_whole(impl):
    score, weight = torch.randn(1, 2, 3, 20, device=DEVICE), grid(1, 2, 3, 20, low=1)
    score[0, 0, 1, 7], weight[0, 1, 2, 3] = NAN, NAN
    kept = (budget_classes(score, (0.25,), weight, impl=impl) == 0).all(-1)[0]
    assert kept.tolist() == [[False, True, False], [False, False, True]]


def test_a_float64_row_is_cut_exactly():
    """The crossing entry is found where subtracting its weight again would lose a bit."""
    weight = torch.tensor([[[[0.1, 0.7, 1e-17]]]], dtype=torch.float64)
    score = torch.tensor([[[[3.0, 2.0, 1.0]]]], dtype=torch.float64)
    assert budget_classes(score, (0.1,), weight).tolist() == [[[[0, 1, 1]]]]
    assert budget_classes(score, (0.1 + 0.7,), weight).tolist() == [[[[0, 0, 1]]]]


@BOTH
def test_classes_of_real_weights(impl):
    """Arbitrary numbers: the kept mass reaches the budget, and without its last entry does not."""
    score = torch.randn(1, 1, 3, 300, device=DEVICE).softmax(-1)
    kept = budget_classes(score, (0.3, 0.9), score, impl=impl)
    for t, budget in enumerate((0.3, 0.9)):
        part = score.double().masked_fill(kept > t, 0)
        last = part.masked_fill(part == 0, INF).amin(-1)
        assert (part.sum(-1) >= budget - 1e-6).all()
        assert (part.sum(-1) - last <= budget + 1e-6).all()


@BOTH
@pytest.mark.parametrize("shape,budgets", [((4, 150), "each"), ((2, 2300), "all"), ((7,), 0.5)])
def test_head_budget(shape, budgets, impl):
    """Against one sort per head, of entries with exact sums; the second shape has two chunks."""
    value = grid(1, 5, *shape, high=64) ** 2
    value[0, 0] = 0.25
    total = value.flatten(2).sum(-1)
    if budgets == "all":
        value, total, budgets = value[:, 1:2], total[:, 1:2], 0.75 * total[:, 1:2]
    elif budgets == "each":
        budgets = total * torch.tensor([0.5, 1.0, 0.0, 2.0, 0.9], device=DEVICE)
    goals = torch.as_tensor(budgets).expand_as(total)[0].tolist()
    found = head_budget(value, budgets, impl=impl)[0].tolist()
    for entries, goal, got in zip(value[0].flatten(1).tolist(), goals, found, strict=True):
        mass, want = 0.0, INF if goal <= 0 else min(entries)
        for x in sorted(entries, reverse=True) if goal > 0 else ():
            mass += x
            if mass >= goal:
                want = x
                break
        assert got == want


@BOTH
def test_head_budget_of_real_values(impl):
    """Over many orders of magnitude and two chunks; a NaN shows in its own head alone."""
    value = torch.randn(1, 3, 4200, device=DEVICE).mul(6).exp()
    value[0, 2, 7] = NAN
    goal = value.double().sum(-1) * torch.tensor([0.5, 1.0, 0.5], device=DEVICE)
    found = head_budget(value, goal, impl=impl)
    assert found.isnan().tolist() == [[False, False, True]]
    value, goal, found = (x[:, :2] for x in (value, goal, found))
    pairs = zip(value.split(1, 1), goal.split(1, 1), strict=True)
    alone = torch.cat([head_budget(v, g, impl=impl) for v, g in pairs], 1)
    # twice what any order of float64 sums can round; the kernel sums in float32
    slack = 1e-6 if impl == "triton" else 2 * value.shape[2] * 2.0**-53
    for edge in (found[..., None], alone[..., None]):
        assert (value == edge).any(-1).all(), "no entry of the head"
        reached = value.double().masked_fill(value < edge, 0).sum(-1)
        beyond = value.double().masked_fill(value <= edge, 0).sum(-1)
        assert (reached >= goal * (1 - slack)).all() and (beyond <= goal * (1 + slack)).all()
    if impl == "triton":
        # in one order whatever the company; PyTorch's, on a GPU, depends on it
        assert torch.equal(alone, found)


@BOTH
def test_head_kth(impl):
    """Equal to a sort: signs, ties, infinities, two chunks; NaN shows in its head."""
    value = torch.randn(1, 3, 2, 2100, device=DEVICE)
    value[0, 1], value[0, 2, 0] = value[0, 1].round(), -INF
    ranked = value.flatten(2).sort(-1, descending=True).values
    for k in (2, 2101):
        assert torch.equal(head_kth(value, k, impl=impl), ranked[..., k - 1])
    value[0, 0, 0, 3] = NAN
    assert head_kth(value, 3, impl=impl).isnan().tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda x: budget_classes(x[0], (1,)), ["score", "[2, 3, 4]"]),
        (lambda x: budget_classes(x, ()), ["budgets", "got 0"]),
        (lambda x: budget_classes(x, range(9)), ["budgets", "8", "got 9"]),
        (lambda x: budget_classes(x, (1, 2), floors=(1,)), ["floors", "(2)", "got 1"]),
        (lambda x: budget_classes(x.double(), (1,), impl="triton"), ["triton", "float64"]),
        (lambda x: head_budget(x[0, 0], 1.0), ["value", "[3, 4]"]),
        (lambda x: head_kth(x, 25), ["value", "k=25"]),
        (lambda x: head_kth(x, 0), ["k=0"]),
    ],
)
def test_bad_calls(call, words):
    with pytest.raises(ValueError) as caught:
        call(torch.randn(1, 2, 3, 4, device=DEVICE).expand(1, 2, 3, 4))
    assert all(w in str(caught.value) for w in words) and "\n" not in str(caught.value)
