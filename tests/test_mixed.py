"""A method for every head: each gets what its own method gives; a wrong table says why."""

import pytest
import torch

from dit_sparse import Grid, Profile, get
from dit_sparse.errors import ArgumentError, DitSparseError
from dit_sparse.quality.probe import Sample
from dit_sparse.testing import Problem, relative_error

LETTERS = (
    "D dense",
    "p pisa keep=0.3 tile=[2, 4, 4]",
    "d draft keep=0.4 patch=[4, 4]",
    "s sparse_vdit table=S",
    "m sparse_vdit table=M block=16",
)
GRIDS = [Grid(4, 8, 8), Grid(3, 5, 7, text=9), Grid(2, 6, 6, text=70, text_first=True)]


def alone(text):
    """Return the method of a letter."""
    return get("mixed", letters=(text,), table=text[0])


@pytest.mark.parametrize(
    ("grid", "table", "impl"),
    [(GRIDS[0], "Dpds", "reference"), (GRIDS[1], "mmpd", "auto"), (GRIDS[2], "pdpd", "auto")],
    ids=str,
)
def test_heads_equal_their_methods(grid, table, impl):
    """Every head, alone and among others, is what the method of its letter makes of it."""
    problem = Problem.make(grid, heads=4)
    out = problem.run(get("mixed", letters=LETTERS, table=table), impl)
    for text in LETTERS:
        heads = [h for h, c in enumerate(table) if c == text[0]]
        if heads:
            x = type(problem.x)(*(t[:, heads] for t in problem.x))
            name = get("mixed", letters=(text,), table=text[0]).arrange.heads.methods[0][1]
            want = Problem(grid, x).run(name, impl)
            assert torch.allclose(out[:, heads], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS[1:], ids=str)
def test_plan_of_all_is_that_of_each(grid):
    """Density and kept mass, read from the plan of all, are those of the groups' plans."""
    problem, table = Problem.make(grid, heads=5), "sDpdm"
    method = get("mixed", letters=LETTERS, table=table)
    plan, sample = (
        method.plan(problem.x, problem.context()),
        Sample.of(problem.x, problem.context()),
    )
    (exact, pooled), total = sample.kept(plan), 0.0
    for head, letter in enumerate(table):
        text = next(t for t in LETTERS if t[0] == letter)
        x = type(problem.x)(*(t[:, head : head + 1] for t in problem.x))
        own = alone(text).arrange.heads.methods[0][1].plan(x, problem.context())
        one = Sample.of(x, problem.context()).kept(own)
        assert torch.allclose(exact[:, head], one[0][:, 0]), text
        assert torch.allclose(pooled[:, head], one[1][:, 0]), text
        total += float(own.density()) / len(table)
    assert float(plan.density()) == pytest.approx(total, abs=1e-5)


def test_parts_and_layers():
    method = get("mixed", letters=LETTERS[:2], begins=[0.25, 0.6],
                 table=[["DD", "DD"], ["pp", "Dp"], ["pp", "pp"]])  # fmt: skip
    row = method.arrange.heads.row
    assert [row(1, s, 10, 2) for s in range(10)] == ["DD"] * 3 + ["Dp"] * 3 + ["pp"] * 4
    # the parts are shares: another number of steps keeps its proportions
    assert [row(1, s, 4, 2) for s in range(4)] == ["DD", "Dp", "Dp", "pp"]
    problem = Problem.make(Grid(2, 8, 8))
    early = problem.run(method, layer=1, step=0, steps=10)
    late = problem.run(method, layer=1, step=9, steps=10)
    assert relative_error(early, problem.run(get("dense"))) < 1e-12 < relative_error(late, early)


WRONG = [
    ({"table": "x"}, "letters D, p"),
    ({"table": ["DD", ""]}, "one per head"),
    ({"letters": ["D dense", "D pisa"]}, "'D' stands for two"),
    ({"letters": ["D"]}, "LETTER METHOD"),
    ({"letters": ["D mixed"]}, "LETTER METHOD"),
    ({"letters": ["D pisa keep"]}, "LETTER METHOD"),
    ({"letters": ["D pisa keep=__import__('os')"]}, "LETTER METHOD"),
    ({"letters": ["D pisa keep=7"]}, "keep=7"),
    ({"letters": ["D pisa kep=0.5"]}, "kep"),
    ({"letters": ["D piza"]}, "piza"),
    ({"letters": ["D moba"]}, "causal"),
    ({"begins": [0.5]}, "2 tables"),
    ({"begins": [0.5, 0.5], "table": [["D"]] * 3}, "rise"),
    ({"begins": [0.5], "table": [["D"], ["D", "D"]]}, "different numbers of layers"),
]


@pytest.mark.parametrize(("params", "words"), WRONG, ids=str)
def test_wrong_tables(params, words):
    with pytest.raises(DitSparseError, match=words) as caught:
        get("mixed", **{"letters": LETTERS[:2], "table": "D", **params})
    assert "\n" not in str(caught.value)


def test_does_not_fit_the_model():
    method = get("mixed", letters=LETTERS[:2], table=["Dp", "pp"])
    method.check(2, 2)
    for layers, heads, words in ((3, 2, "2 layers"), (2, 3, "2 letters")):
        with pytest.raises(ArgumentError, match=words):
            method.check(layers, heads)


def test_profile_is_lines_of_letters():
    params = {"letters": list(LETTERS), "begins": [0.5], "table": [["Dp", "dd"], ["ss", "mD"]]}
    profile = Profile("m", "mixed", params)
    text = profile.to_toml()
    assert '"Dp",\n' in text and '"d draft keep=0.4 patch=[4, 4]",\n' in text
    assert Profile.from_toml(text).build() == profile.build()
