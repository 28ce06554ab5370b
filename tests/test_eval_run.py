"""An evaluation of a tiny transformer: what it measures, how it goes on, what it finds."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dit_sparse.errors import ArgumentError
from dit_sparse.quality import table
from dit_sparse.quality.cases import DENSE, Case, Claim
from dit_sparse.quality.results import Result, Row
from dit_sparse.quality.run import Evaluation
from dit_sparse.quality.store import Store
from tests.tiny_wan import tiny_wan

VIDEOS = [("a red circle", 0), ("a blue square", 1), ("a red circle", 1000)]
NO_SCHEDULE = {"dense_steps": 0, "dense_layers": 0, "patch": (3, 2)}
CASES = [
    Case("draft", "draft", {**NO_SCHEDULE, "keep": 0.3}),
    Case("draft all", "draft", {**NO_SCHEDULE, "keep": 1.0}),
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_wan().transformer


@torch.no_grad()
def generate(model, prompt, seed, steps):
    """Stand in for a pipeline: a few Euler steps; the latents themselves are the frames."""
    g = torch.Generator().manual_seed(seed)
    x, text = torch.randn(1, 4, 3, 18, 20, generator=g), torch.full((1, 4, 16), len(prompt) / 9)
    begin = time.perf_counter()
    for step in range(steps):
        at = torch.tensor([1000 * (1 - step / steps)])
        x = x + 3 * model(x, at, text, return_dict=False)[0] / steps
    frames = x[0, :3].sigmoid().permute(1, 2, 3, 0).numpy()
    return SimpleNamespace(frames=frames, denoising=time.perf_counter() - begin)


@pytest.fixture
def start(model, tmp_path):
    """Return a function that begins (or goes on with) an evaluation in the test's folder."""

    def begin(cases=CASES, videos=VIDEOS, steps=2, stop=None, **options):
        done = []

        def sample(prompt, seed, num_inference_steps=steps, output_type="np"):
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(prompt)
            return generate(model, prompt, seed, num_inference_steps)

        made = Evaluation(model, list(cases), list(videos), sample, Store(tmp_path / "runs.jsonl"),
                          {"steps": steps}, {"device": "CPU"}, **options)  # fmt: skip
        made.generations = done
        return made

    return begin


def values(result):
    """Return what does not depend on the clock."""
    return {
        (row.label, name, video): value
        for row in result.rows
        for name, found in row.values.items()
        for video, value in found.items()
        if name != "seconds"
    }


def test_measures(start):
    made = start()
    made.run()
    result = made.result()
    dense, draft, whole = result.rows
    assert [row.label for row in result.rows] == [DENSE, "draft", "draft all"]
    assert result.videos == VIDEOS and not made.failed
    assert set(dense.values) == {"seconds", "flicker", "warped_error"}
    assert set(draft.values) == {*dense.values, "psnr", "ssim", "density", "density_all", "error",
                                 "recall", "pooled"}  # fmt: skip
    # all of them on all videos, attention on the first two
    for name, found in draft.values.items():
        assert list(found) == (VIDEOS[:2] if name in ("error", "recall", "pooled") else VIDEOS)
    # keeping all: nothing is lost but rounding
    assert min(whole.values["psnr"].values()) > max(80, *draft.values["psnr"].values())
    assert result.mean(whole, "error").value < 1e-4 and result.mean(whole, "recall").value > 0.9999
    assert result.mean(whole, "density").value == pytest.approx(1)
    assert result.mean(whole, "flicker_change").value == pytest.approx(0, abs=1e-5)
    assert result.mean(draft, "density").value < 0.6 and result.mean(draft, "error").value > 0.01
    assert set(draft.layers["transformer"]) == {"0", "1"}
    speed = [dense.values["seconds"][v] / draft.values["seconds"][v] for v in VIDEOS]
    first = (speed[0] + speed[2]) / 2
    assert result.mean(draft, "speedup").value == pytest.approx((first + speed[1]) / 2)


def test_interrupted_and_resumed(start, tmp_path):
    """Wherever it stops, what comes after is what would have come at once."""
    whole = start()
    whole.run()
    want, count = values(whole.result()), len(whole.generations)
    (tmp_path / "runs.jsonl").rename(tmp_path / "whole.jsonl")
    for stop in (5, 2):
        made = start(stop=stop)
        with pytest.raises(KeyboardInterrupt):
            made.run()
        # cut off while it was written
        with (tmp_path / "runs.jsonl").open("a") as file:
            file.write('{"key": "abc", "val')
    again = start()
    again.run()
    assert values(again.result()) == pytest.approx(want) and 0 < len(again.generations) < count
    last = start()
    last.run()
    assert not last.generations and values(last.result()) == pytest.approx(want)


def test_settings_are_kept_apart(start):
    """Another number of steps, another budget: measured again, and never mixed."""
    start(videos=VIDEOS[:1]).run()
    other = start(videos=VIDEOS[:1], steps=3)
    assert not other.result().sparse
    other.run()
    assert other.generations
    narrow = replace(CASES[0], params={**CASES[0].params, "keep": 0.6})
    made = start([narrow, CASES[1]], VIDEOS[:1])
    assert [row.label for row in made.result().sparse] == ["draft all"]
    # more videos: only those are new
    more = start(videos=VIDEOS[:2], probes=0)
    more.run()
    assert set(more.generations) == {VIDEOS[1][0]}


def test_one_failure_costs_nothing_else(start):
    bad = Case("bad", "sparse_vdit", {"table": (("DM", "DM"),) * 5, "dense_steps": 0})
    made = start([bad, CASES[0]], VIDEOS[:2], probes=0)
    made.run()
    result = made.result()
    assert list(result.failed) == ["bad"] and [r.label for r in result.sparse] == ["draft"]
    assert result.videos == VIDEOS[:2]
    assert "not measured: bad" in table.markdown(result)


def test_a_target_density_is_met(start):
    case = Case("draft density=0.5", "draft", NO_SCHEDULE, target=0.5)
    made = start([case], VIDEOS[:1], probes=0)
    made.run()
    row = made.result().sparse[0]
    # eight key blocks a row, of which whole ones are kept
    assert row.facts["keep"] > 0 and made.result().mean(row, "density").value == pytest.approx(
        0.5, abs=1 / 8
    )
    again = start([case], VIDEOS[:1], probes=0)
    again.run()
    assert not again.generations


def test_a_target_is_met_where_the_first_steps_are_dense(start):
    """Calibration has 4 steps: as many dense ones must not hide the method from it."""
    params = {**NO_SCHEDULE, "dense_steps": 5}
    case = Case("draft density=0.5", "draft", params, target=0.5)
    made = start([case], VIDEOS[:1], steps=6, probes=0)
    made.run()
    row = made.result().sparse[0]
    assert made.result().mean(row, "density").value == pytest.approx(0.5, abs=1 / 8)
    # no step is left for the method at all: said, not calibrated
    layers = Case("layers", "draft", {**NO_SCHEDULE, "dense_layers": 2}, target=0.5)
    made = start([layers], VIDEOS[:1], probes=0)
    made.run()
    assert "every call was dense" in made.failed["layers"]


@pytest.mark.parametrize("labels", [(DENSE,), ("a", "a")])
def test_labels_that_would_hide_a_case(start, labels):
    with pytest.raises(ArgumentError, match=f"called '{labels[0]}'"):
        start([Case(label, "draft", NO_SCHEDULE) for label in labels])


def test_other_learned_tensors_are_another_case(start, tmp_path):
    """The path of a method's weights stays, what lies there does not."""
    case = Case("sla", "sla", {"weights": str(tmp_path / "{part}.safetensors")})
    keys = set()
    for text in (None, "one", "two", "one", "three"):
        if text is not None:
            (tmp_path / "transformer.safetensors").write_text(text)
        keys.add(start([case])._key("sla", VIDEOS[0]))
    assert len(keys) == 4


def test_claims_pair_cases_of_one_budget():
    def row(series, value, **facts):
        return Row(f"{series} {facts}", {"series": series, **facts}, {"psnr": {("a", 0): value}})

    def kept(series, value, keep):
        return row(series, value, params={"keep": keep})

    rows = [Row(DENSE), kept("x", 5, 0.1), kept("x", 7, 0.5), kept("x", 9, 0.9), kept("y", 1, 0.5),
            kept("y", 2, 0.1), row("x", 8, target=0.3), row("y", 4, target=0.3)]  # fmt: skip
    claims = [Claim("x beats y", "x", "y")]
    titles, cells = table.claims(Result({}, {}, [("a", 0)], rows, claims))
    assert titles[1:3] == ["density", "keep"]
    assert [c[1:4] for c in cells] == [["0.3", "", "+4.00"], ["", "0.5", "+6.00"],
                                       ["", "0.1", "+3.00"]]  # fmt: skip
    assert "density" not in table.claims(Result({}, {}, [("a", 0)], rows[:-2], claims))[0]


def result_of(points, **extra):
    """Return a result whose rows have these (seconds, psnr) on one video."""
    video = ("a", 0)
    rows = [Row(DENSE, {}, {"seconds": {video: 10.0}})]
    rows += [Row(str(i), {}, {"seconds": {video: s}, "psnr": {video: p}})
             for i, (s, p) in enumerate(points)]  # fmt: skip
    return Result({}, {"device": "x"}, [video], rows, **extra)


def test_front():
    points = [(1, 20), (2, 30), (3, 25), (4, 40), (2, 29), (1, 19), (5, 40)]
    assert [row.label for row in result_of(points).front()] == ["0", "1", "3"]


def test_result_survives_its_file(tmp_path):
    result = result_of([(1, 20), (2, 30)], failed={"x": "why"})
    result.write(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == result
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
