"""The search: what it chooses is best, what it measures is true, and so is the paper's rule."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch

import dit_sparse
from dit_sparse import Grid, get
from dit_sparse.errors import ArgumentError
from dit_sparse.quality.store import Store
from dit_sparse.search import measure
from dit_sparse.search.candidates import DEFAULT, PAPER, candidates, lettered
from dit_sparse.search.choose import Problem, faster, within
from dit_sparse.search.measure import Errors, Times, observing
from dit_sparse.search.paper import Greedy, majority
from dit_sparse.search.run import Search
from dit_sparse.testing import Problem as Tensors
from dit_sparse.testing import dense, relative_error
from tests.tiny_wan import tiny_wan

TEXTS = (
    "D dense",
    "d draft keep=0.5 patch=[4, 4]",
    "t sparse_vdit table=D block=16",
    "s sparse_vdit table=S",
)
VIDEOS = [("a red circle", 0), ("a blue square", 1)]


def problem(seed=0, heads=3, fixed=0.3):
    g = torch.Generator().manual_seed(seed)
    errors = torch.rand(2, 2, heads, 4, generator=g, dtype=torch.float64)
    errors[..., 0] = 0
    each = torch.tensor([1.0, 0.5, 0.3, 0.1], dtype=torch.float64)
    return Problem(errors, errors.clone(), (1, 3), torch.full_like(each, fixed), each, 0.1)


@pytest.fixture
def once(monkeypatch):
    """A call is timed once: what it says is of no interest here."""
    monkeypatch.setattr(measure, "REPEATS", 1)


@pytest.mark.parametrize("price", [0.0, 0.3, 1.0, 5.0, 1e6])
def test_choice_is_the_best_of_all(price):
    """Against every assignment of a layer, one by one."""
    of = problem()
    found = of.at(price)
    for p, n in product(range(2), range(2)):

        def cost(heads, p=p, n=n):
            lost = sum(float(of.errors[p, n, h, c]) for h, c in enumerate(heads))
            time = sum(float(of.each[c]) for c in heads)
            launches = sum(float(of.fixed[c]) for c in set(heads))
            return time + price * lost + launches + of.split * (len(set(heads)) - 1)

        best = min(map(cost, product(range(4), repeat=3)))
        assert cost(found[p, n].tolist()) == pytest.approx(best)


def test_budgets_hold_and_cost_what_they_must():
    of, times = problem(heads=4), []
    for budget in (0.05, 0.5, 10.0):
        choice = within(of, budget)
        assert of.error(choice) <= budget
        times.append(of.seconds(choice))
    assert times == sorted(times, reverse=True) and times[0] > times[-1]
    errors = []
    for seconds in (6.0, 12.0, 1e3):
        choice = faster(of, seconds)
        assert of.seconds(choice) <= seconds
        errors.append(of.error(choice))
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0 and faster(of, 0.1) is None


def test_error_goes_where_it_does_least():
    """Of two layers alike, the one whose errors do more harm is computed more exactly."""
    of = problem()
    of.errors[:] = of.errors[:1, :1]
    weights = torch.tensor([0.1, 1.9], dtype=torch.float64)[:, None, None]
    choice = within(replace(of, harm=weights * of.errors), 0.6)
    lost = of.errors.gather(3, choice[..., None]).sum((2, 3))
    assert (lost[:, 0] >= lost[:, 1]).all() and (lost[:, 0] > lost[:, 1]).any()


def test_errors_are_those_of_the_candidates(once):
    problem, found = Tensors.make(Grid(4, 8, 8), heads=3), candidates(TEXTS)
    errors, times = Errors(found), Times(found, (0,))
    truth = dense(problem.x, problem.context())
    for see in (errors, times):
        assert torch.equal(problem.run(observing(see), step=0), truth)
    got = torch.tensor(errors.told()["errors"][0][0])
    for number, candidate in enumerate(found):
        out = problem.run(candidate.method)
        whole = relative_error(out, truth)
        assert got[:, number].sum() == pytest.approx(whole**2, rel=1e-3, abs=1e-9)
    assert got[:, 3].sum() == pytest.approx(1, rel=1e-3) and not got[:, 0].any()
    told = times.told()
    assert len(told["seconds"]) == 4 and all(a >= 0 and b >= 0 for a, b in told["seconds"])


def test_rule_of_the_paper():
    problem, modes = Tensors.make(Grid(4, 8, 8), heads=3), candidates(PAPER)
    truth = dense(problem.x, problem.context())
    never = Greedy(modes, eps=0.0)
    assert torch.equal(problem.run(observing(never), step=0), truth)
    assert never.told() == [["FFF"]]
    # a penalty without end: nothing is as cheap as nothing
    skipped = Greedy(modes, eps=float("inf"), penalty=1e9)
    assert not problem.run(observing(skipped), step=0).any() and skipped.told() == [["SSS"]]
    always = Greedy(modes, eps=float("inf"), penalty=0.0)
    out = problem.run(observing(always), step=0)
    (row,) = always.told()[0]
    assert "F" not in row
    again = problem.run(get("mixed", letters=list(PAPER), table=row))
    assert relative_error(again, out) < 1e-12
    for head, letter in enumerate(row):
        lost = {
            c.letter: (problem.run(c.method) - truth)[:, head].square().mean() for c in modes[1:]
        }
        assert min(lost, key=lost.__getitem__) == letter


def test_majority():
    tables = [[["FS"], ["FF"]], [["DS"], ["FM"]], [["DF"], ["SM"]]]
    assert majority(tables, "FSDM") == [["DS"], ["FM"]]
    assert majority(tables[:2], "FSDM") == [["FS"], ["FF"]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_wan().transformer


@pytest.fixture
def start(model, tmp_path, once):
    """Return a function that begins (or goes on with) a search in the test's folder."""

    def begin(stop=None, **options):
        made = []

        @torch.no_grad()
        def sample(prompt, seed, num_inference_steps=2, output_type="np"):
            if len(made) == stop:
                raise KeyboardInterrupt
            made.append(prompt)
            g = torch.Generator().manual_seed(seed)
            x, text = torch.randn(1, 4, 2, 8, 8, generator=g), torch.full((1, 4, 16), 0.5)
            for step in range(num_inference_steps):
                at = torch.tensor([1000 * (1 - step / num_inference_steps)])
                x = x + 3 * model(x, at, text, return_dict=False)[0] / num_inference_steps
            frames = x[0, :3].sigmoid().permute(1, 2, 3, 0).numpy()
            return SimpleNamespace(frames=frames, denoising=0.1)

        store = Store(tmp_path / "s.jsonl")
        options = {"hold": False, **options}
        search = Search(model, candidates(TEXTS), VIDEOS, sample, store, {}, {}, (0.5,), **options)
        search.made = made
        return search

    return begin


def test_search_goes_on_where_it_was(start, model):
    whole = start()
    params = whole.for_error(0.3)
    got = whole.measured(params)
    assert whole.problem.error(whole.choice(params)) <= 0.3 and got["psnr"] > 10
    assert whole.progress.done == whole.progress.total
    assert whole.progress.work == pytest.approx(whole.progress.whole)
    count = len(whole.made)
    again = start()
    assert again.for_error(0.3) == params and again.measured(params) == got and not again.made
    other = start(stop=3)
    other.settings["steps"] = 5
    with pytest.raises(KeyboardInterrupt):
        other.for_error(0.3)
    rest = start()
    rest.settings["steps"] = 5
    rest.measured(rest.for_error(0.3))
    assert 0 < len(rest.made) < count
    facts = whole.facts(params)
    assert 0 <= facts["alike"]["videos"] <= 1 and len(facts["harm"]) == 2
    seconds = []
    for psnr in (10.0, 40.0):
        aimed = whole.for_psnr(psnr)
        assert whole.measured(aimed)["psnr"] >= psnr
        seconds.append(whole.problem.seconds(whole.choice(aimed)))
    assert seconds[0] <= seconds[1] <= whole.problem.seconds(whole.problem.dense())
    with pytest.raises(ArgumentError, match="not enabled"):
        dit_sparse.integrations.diffusers.progress(model)


def test_first_part_is_held(start):
    """Dense in every table, asked for nothing, and counted as it is."""
    held = start(hold=True)
    held.for_error(10.0)
    parts, *shape = held.problem.errors.shape[:3]
    assert parts == 1
    choice = torch.ones(parts, *shape, dtype=torch.int64)
    params = held.params(choice)
    assert [set("".join(part)) for part in params["table"]] == [{"D"}, {"d"}]
    assert torch.equal(held.choice(params), choice)
    assert held.measured(params)["psnr"] > 10
    assert held.progress.done == held.progress.total
    # what is on file serves the search of all parts, too
    whole = start()
    whole.for_error(10.0)
    assert len(whole.made) < len(held.made)


def test_candidates():
    assert len(candidates(DEFAULT)) == len(DEFAULT) and len(candidates(PAPER)) == 5
    assert [c.letter for c in candidates(lettered(["pisa keep=0.5", "draft"]))] == ["D", "a", "b"]
    for texts, words in (
        (["p pisa", "D dense"], "must be dense"), (["D dense"], "2 to"), (["D dense"] * 2, "diff"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=words):
            candidates(texts)
