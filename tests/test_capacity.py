"""Lists hold what rows keep, for the settings that the conformance suite does not reach."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

import dit_sparse
from dit_sparse.core import Grid
from dit_sparse.select.levels import Levels
from dit_sparse.select.per_head import Band
from dit_sparse.select.topk import TopK
from dit_sparse.testing import Problem, check_lists

GRIDS = [Grid(4, 6, 10), Grid(3, 7, 9, text=11, text_first=True)]
# blocks of 16 tokens
SMALL = {"pisa": {"tile": (2, 2, 4)}, "psa": {"block": (16, 16)}}
SMALL |= {name: {"block": 16} for name in ("svg", "sparse_vdit")}
CASES = [
    ("pisa", {"keep": 0.29, "order": 0}),
    ("draft", {"rule": "row", "keep": 0.1, "patch": (2, 4)}),
    *[("psa", {"rule": r}) for r in ("threshold", "released", "quota")],
    ("psa", {"similarity": (0.7, 0.65, 0.6)}),
    ("psa", {"similarity": (0.7, 0.65, 0.6), "keep": 0.3}),
    ("psa", {"levels": (1, 4), "bounds": (0.3, 0.9), "rule": "released"}),
    ("psa", {"bounds": (0.0, 0.3, 0.6, 1.0)}),
    *[("svg", {"first_frame": f, "keep": k}) for f in (False, True) for k in (0.02, 0.5)],
    *[("sparse_vdit", {"table": t}) for t in ("F", "S", "DM", "DV", "SF")],
    ("sparse_vdit", {"table": "DV", "diagonal": 0.02, "stripe": 0.6}),
    ("vmoba", {"select": "topk", "columns": (2, 2)}),
]


@pytest.mark.parametrize(("name", "params"), CASES, ids=str)
@pytest.mark.parametrize("grid", GRIDS)
def test_no_kept_block_is_lost(name, params, grid):
    method = dit_sparse.get(name, **{**SMALL.get(name, {}), **params})
    check_lists(method, Problem.make(grid, batch=1))


@dataclass(frozen=True)
class Short:
    """A stage that keeps one block more than it tells."""

    select: Any

    def capacity(self, columns):
        return self.select.capacity(columns) - 1

    def __call__(self, score, layout, ctx):
        return self.select(score, layout, ctx)


@dataclass(frozen=True)
class Unpooled(Levels):
    """Levels that promises the remainder to pool nothing."""

    def __call__(self, score, layout, ctx):
        ctx.cache["pooled_blocks"] = dict.fromkeys(self.factors, 0)
        return super().__call__(score, layout, ctx)


SHORT = [("pisa", Short(TopK(0.5))), ("svg", Short(Band(0.25))), ("psa", Unpooled())]


@pytest.mark.parametrize(("name", "select"), SHORT, ids=str)
def test_a_list_too_short_is_noticed(name, select):
    method = replace(dit_sparse.get(name, **SMALL[name]), select=select)
    with pytest.raises(AssertionError, match=r"a row keeps \d+ blocks, its list holds"):
        check_lists(method, Problem.make(GRIDS[0], batch=1))
