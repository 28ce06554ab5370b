"""What the stages check and count alike: counts, shares, places that spread evenly."""

from itertools import pairwise
from math import inf, nan

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.constants import constant, golden
from dit_sparse.errors import ArgumentError
from dit_sparse.parameters import check_count, check_share, quota


@pytest.mark.parametrize("value", [-0.1, 1.5, nan, inf, True, "much", None])
def test_a_share_is_a_number_up_to_one(value):
    for zero in ("", "all"):
        with pytest.raises(ArgumentError) as caught:
            check_share("tau", value, zero)
        assert str(caught.value).startswith(f"tau={value!r} must be a share")


def test_zero_is_a_share_where_it_means_something():
    check_share("tau", 0, zero="all")
    for value in (0, 0.0):
        with pytest.raises(ArgumentError, match=r"tau=0.* above 0 and at most 1"):
            check_share("tau", value)
    for value in (1, 1.0, 1e-9):
        check_share("tau", value)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8", None])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(ArgumentError, match=f"block={value!r} must be a count"):
        check_count("block", value)


@pytest.mark.parametrize("n", [1, 7, 100, 4096])
def test_a_quota_undoes_rounding(n):
    """The share k / n is k of n, whatever its binary form; a little less is one fewer."""
    for k in range(1, n + 1, max(1, n // 50)):
        assert quota(k / n, n) == k == quota(1 - (n - k) / n, n)
        assert quota((k - 0.01) / n, n, least=0) == k - 1
    assert quota(0.0, n) == 1 and quota(0.0, n, least=0) == 0


@pytest.mark.parametrize("count", [2, 3, 13, 50, 1000])
def test_golden_places_leave_no_large_gap(count):
    """Gaps between multiples of the golden ratio are of two or three sizes, near 1 / count."""
    at = sorted(golden(n, 0.3) for n in range(count))
    gaps = [b - a for a, b in pairwise([*at, at[0] + 1])]
    assert 0.38 / count < min(gaps) and max(gaps) < 2 / count


def test_a_constant_is_made_once():
    """Equal numbers of another type are another constant; none is bound to inference mode."""
    with torch.inference_mode():
        made = [constant((1.0, 0.0), dtype, "cpu") for dtype in (torch.bool, torch.float64)]
    assert [x.tolist() for x in made] == [[True, False], [1.0, 0.0]]
    assert constant((1, 0), torch.bool, "cpu") is made[0] and not made[0].is_inference()


WRONG = [
    *({"scale": x} for x in (0, -1.0, nan, inf, True, "1")),
    {"q": [1.0]},
    {"q": torch.ones(2, 8, 4)},
    {"k": torch.ones(1, 2, 9, 4)},
    {"k": torch.ones(1, 2, 8, 4).double()},
    {"k": torch.ones(1, 2, 8, 4, device="meta")},
    {"k": torch.ones(1, 3, 8, 4), "v": torch.ones(1, 3, 8, 4)},
    {"q": torch.ones(1, 2, 0, 4)},
    {"grid": (1, 2, 4)},
    {"grid": Grid(1, 2, 3)},
    {"causal": "yes"},
    {"causal": True},
    {"method": 5},
    {"method": dit_sparse.get("draft"), "keep": 0.5},
    {"impl": "cuda"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: "-".join(wrong))
def test_a_wrong_argument_is_named(wrong):
    """One line that begins with the argument, or with what several of them are."""
    x = dict.fromkeys(("q", "k", "v"), torch.ones(1, 2, 8, 4))
    call = {**x, "method": "draft", "grid": Grid(1, 2, 4), **wrong}
    with pytest.raises(ArgumentError) as caught:
        dit_sparse.attention(**call)
    said = str(caught.value)
    assert "\n" not in said and any(name in said.split(";")[0] for name in wrong)
