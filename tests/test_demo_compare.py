"""The tab "Compare": dots, front, table and setting of an evaluation, and a small one made now."""

import itertools
import json
import re

import pytest

from dit_sparse.commands.loading import loaded
from dit_sparse.commands.request import Request
from dit_sparse.commands.screen import Screen, hushed
from dit_sparse.demos import evaluations, front, sortable
from dit_sparse.errors import ArgumentError
from tests.demo_material import CASES, Reader, made
from tests.tiny_wan import save


def place(point):
    """Return the place of a dot, in per cent from the left and from below."""
    return [
        float(re.search(rf"{side}:([\d.]+)%", point["style"])[1]) for side in ("left", "bottom")
    ]


ALL = ["draft", "mixed", "pisa"]
COST, GAIN = next(iter(front.COSTS)), next(iter(front.GAINS))


@pytest.mark.parametrize("cost", front.COSTS)
def test_every_setting_is_a_dot_in_its_place(cost):
    points = Reader(front.picture(made(), cost, GAIN, ALL)).all("button")
    assert {point["data-label"] for point in points} == {label for label, *_ in CASES}
    where = {point["data-label"]: place(point) for point in points}
    want = {label: (seconds, sum(psnr) / 2) for label, _, seconds, psnr in CASES}
    # one straight line takes each axis to the page
    for axis in (0, 1):
        pairs = sorted((want[label][axis], where[label][axis]) for label in where)
        (a, x), (b, y) = pairs[0], pairs[-1]
        for value, at in pairs:
            assert at == pytest.approx(x + (value - a) * (y - x) / (b - a), abs=0.02)
        assert 0 <= x < y <= 100


def test_the_front_is_marked():
    page = Reader(front.picture(made(), COST, GAIN, ALL))
    marked = [p["data-label"] for p in page.all("button") if "front" in p["class"].split()]
    assert set(marked) == {row.label for row in made().front()} and len(marked) == 3
    for point in page.all("button"):
        assert ("on the front" in point["aria-label"]) == (point["data-label"] in marked)
        assert "dB" in point["aria-label"] and " s" in point["aria-label"]
    # a found profile looks different from a method of a paper
    (found,) = [p for p in page.all("button") if "mixed" in p["class"].split()]
    assert found["data-label"] == "shapes--mixed"


def test_filter_and_choice():
    """Filtering moves no dot and no axis; what is chosen is told."""
    full, some = (Reader(front.picture(made(), COST, GAIN, names, "pisa keep=0.5"))
                  for names in (ALL, ["pisa"]))  # fmt: skip
    kept = {p["data-label"]: p for p in some.all("button")}
    assert set(kept) == {"pisa keep=0.25", "pisa keep=0.5"}
    for point in full.all("button"):
        if point["data-label"] in kept:
            assert point["style"] == kept[point["data-label"]]["style"]
    assert [n for n, p in kept.items() if p["aria-pressed"] == "true"] == ["pisa keep=0.5"]
    assert "No method is chosen" in front.picture(made(), COST, GAIN, [])
    assert "The time was not measured" in front.picture(made(times=False), COST, GAIN, ALL)


@pytest.mark.parametrize("count", [1, 2, 10, 16])
def test_methods_have_colours_of_their_own(count):
    assert len({front.colour(number, count) for number in range(count)}) == count


def test_ticks_are_round():
    for low, high in ((0, 1), (2.3, 5.9), (0.0031, 0.0047), (-3, 1200), (5, 5)):
        found = front.ticks(low, high)
        assert len(found) <= front.TICKS + 1 and all(low - 1e-9 <= t <= high + 1e-9 for t in found)
        steps = {f"{b - a:.6g}" for a, b in itertools.pairwise(found)}
        assert len(steps) <= 1 and (low == high or len(found) >= 2)
        assert all(re.fullmatch(r"[125]0*|0\.0*[125]", step) for step in steps)


def test_table():
    titles, rows = evaluations.table(made(), ALL)
    assert len(rows) == 5 and {len(row) for row in rows} == {len(titles)}
    psnr = [float(row[1]) for row in rows]
    assert psnr == sorted(psnr, reverse=True)
    assert [row[0] for row in rows if row[-1]] == [r[0] for r in rows if r[0] in
            {row.label for row in made().front()}]  # fmt: skip
    assert {row[0] for row in evaluations.table(made(), ["pisa"])[1]} == {CASES[0][0], CASES[1][0]}
    page = Reader(sortable.table(titles, rows, "all"))
    assert [b["data-label"] for b in page.all("button") if "data-label" in b] == [
        r[0] for r in rows
    ]
    assert len(page.all("th")) == len(titles) and not page.all("b")


def test_setting():
    assert evaluations.setting(made(), "pisa keep=0.5")["keep"] == 0.5
    found = evaluations.setting(made(), "shapes--mixed")
    assert (found["method"], found["keep"]) == ("mixed", None)
    # what the method has anyway on this model is left out, a common schedule is not
    result = made()
    result.sparse[0].facts.update(params={"keep": 0.5, "order": 0, "tile": [4, 4, 4]},
                                  schedule={"dense_steps": 0.5, "dense_layers": 0})  # fmt: skip
    found = evaluations.setting(result, "pisa keep=0.25")
    assert found["settings"].splitlines() == ["dense_steps=0.5", "order=0"]
    with pytest.raises(ArgumentError, match="'nothing' is no row"):
        evaluations.setting(made(), "nothing")


def test_saved(tmp_path):
    """What `eval` writes beside a model is found; a model without has none."""
    (tmp_path / "model_index.json").write_text("{}")
    assert evaluations.saved(str(tmp_path)) is None and evaluations.saved("owner/name") is None
    made().write(tmp_path / evaluations.FILE)
    found = evaluations.saved(str(tmp_path))
    assert evaluations.methods(found) == ALL
    assert "2 videos of 2 prompts, 33 frames, 12 steps" in evaluations.told(found)
    (tmp_path / evaluations.FILE).write_text(json.dumps({"eval": 0}))
    with pytest.raises(ArgumentError, match=evaluations.FILE):
        evaluations.saved(str(tmp_path))


REFUSED = [
    (([], 0.5, 1), "0 methods"),
    ((["pisa", "psa", "svg", "draft"], 0.5, 1), "4 methods"),
    ((["dense"], 0.5, 1), "'dense'"),
    ((["pisa"], 0.0, 1), "keep 0"),
    ((["pisa"], float("nan"), 1), "keep nan"),
    ((["pisa"], 0.5, 100), "100 videos"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=str)
def test_refused_before_any_work(given, words):
    with pytest.raises(ArgumentError, match=words):
        evaluations.measure(None, None, *given, None)


class Bar:
    """Hears of the progress, and may stop the work."""

    def __init__(self, stop_at=None):
        self.told, self.stop_at = [], stop_at

    def show(self, step, steps, note):
        self.told.append((step, steps, note))
        if len(self.told) == self.stop_at:
            raise KeyboardInterrupt


def test_measure(tmp_path):
    """A small evaluation of a real pipeline: an eval result like any other; stopped at any step."""
    model = str(save(tmp_path / "model"))
    request = evaluations.small(Request("any", model, "cpu"), (1, 5, 9))
    assert (request.frames, request.steps) == (5, evaluations.STEPS)
    bar = Bar()
    with hushed(False):
        there = loaded(request, Screen(quiet=True))
        result = evaluations.measure(there, request, ["pisa"], 0.5, 1, bar)
        with pytest.raises(KeyboardInterrupt):
            evaluations.measure(there, request, ["pisa"], 0.5, 1, Bar(3))
    assert [row.label for row in result.rows] == ["dense", "pisa keep=0.5"]
    told = result.sparse[0].values
    assert {"psnr", "seconds", "density", "recall", "error"} <= set(told)
    # the steps of both videos, counted on; looking into one shows its steps a second time
    assert {total for _, total, _ in bar.told} == {2 * evaluations.STEPS}
    assert {step for step, _, _ in bar.told} == set(range(2 * evaluations.STEPS + 1))
    assert Reader(front.picture(result, COST, GAIN, ["pisa"])).all("button")
    assert evaluations.setting(result, "pisa keep=0.5") == {
        "method": "pisa", "keep": 0.5, "settings": "",
    }  # fmt: skip
