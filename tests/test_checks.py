"""Values that fit no model, size or number of steps are refused as soon as these are known."""

from dataclasses import dataclass, replace

import pytest
import torch

import dit_sparse
from dit_sparse import Context, Grid
from dit_sparse.arrange.clusters import Clusters
from dit_sparse.arrange.raster import Raster
from dit_sparse.core import Arrange, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.schedule import Schedule
from dit_sparse.testing import GRIDS, Problem
from tests.probe import LAYERS, STEPS, quiet, run
from tests.tiny_wan import tiny_wan

GRID, HEADS = Grid(4, 6, 10, text=3), 2
SPARSE = {"dense_steps": 0, "dense_layers": 0}
# method, parameters, layer, words; of the model
OF_MODEL = [
    ("sparse_vdit", {"table": ("DMV", "DM")}, 0, "layer 0 has 3 letters, the model 2 heads"),
    ("sparse_vdit", {"table": ("DM",)}, 1, "table has 1 layers; layer 1"),
    ("sparse_vdit", {"table": (("DM", "F"),) * STEPS}, 1, "layer 1 has 1 letters"),
]
# of the grid or the steps
OF_GENERATION = [
    ("sparse_vdit", {"table": (("DM", "DM"),) * 4}, 0, "rows for 4 steps, this is step 0 of 3"),
    ("svg2", {"q_clusters": 241}, 0, "q_clusters=241 is above the 240 video tokens"),
    ("svg_ear", {"k_clusters": 500}, 0, "k_clusters=500 is above the 240 video tokens"),
    ("vmoba", {"unit": "tokens", "slabs": 5}, 0, "slabs=5: a chunk of 5"),
    ("vmoba", {"unit": "tokens", "slabs": 2, "columns": (6, 11)}, 1, "columns=(6, 11): a chunk"),
    ("pisa", {"sinks": (0, 9)}, 0, "sinks=(0, 9) must lie within the 4 key blocks"),
    ("pisa", {"sinks": (-16,), "tile": (2, 4, 2)}, 0, "must lie within the 15 key blocks"),
]


def refusal(call):
    with pytest.raises(ArgumentError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(("name", "params", "layer", "words"), OF_MODEL + OF_GENERATION)
def test_a_check_raises_what_the_call_raises(name, params, layer, words):
    method = dit_sparse.get(name, **params, **SPARSE)
    ctx = Context(grid=GRID, layer=layer, steps=STEPS)
    late = refusal(lambda: method(Problem.make(GRID, heads=HEADS).x, ctx))
    early = refusal(lambda: method.check(LAYERS, HEADS, STEPS, GRID))
    assert early == late and words in early and "\n" not in early
    # before the fact is known there is nothing to refuse, and nothing where all calls are dense
    if (name, params, layer, words) in OF_MODEL:
        assert refusal(lambda: method.check(LAYERS, HEADS)) == early
    else:
        method.check(LAYERS, HEADS)
    for schedule in (Schedule(STEPS), Schedule(dense_layers=LAYERS)):
        method.with_schedule(schedule).check(LAYERS, HEADS, STEPS, GRID)


@pytest.mark.parametrize("name", dit_sparse.methods())
def test_defaults_fit_everywhere(name):
    for grid in (*GRIDS.values(), Grid(1, 1, 1)):
        dit_sparse.get(name).check(40, 5, 50, grid)


def test_only_sparse_calls_count():
    """The row of a dense step or layer is never read."""
    table = (("D", "F"), ("D", "FF"), ("D", "MM"))
    method = dit_sparse.get("sparse_vdit", table=table, dense_layers=1)
    method.with_schedule(Schedule(1, 1)).check(2, 2, 3, GRID)
    for schedule in (Schedule(0, 1), Schedule(1, (1,))):
        assert "letters" in refusal(lambda s=schedule: method.with_schedule(s).check(2, 2, 3))


@dataclass(frozen=True)
class Apart:
    """Two stages in one, which knows nothing of their checks."""

    q: Arrange
    kv: Arrange

    def __call__(self, x, ctx):
        return Layout(self.q(x, ctx).q, self.kv(x, ctx).kv)


def test_parts_of_a_stage_are_asked():
    method = replace(dit_sparse.get("draft"), arrange=Apart(Raster(), Clusters(k_clusters=999)))
    method.check(3, 2)
    assert "k_clusters=999" in refusal(lambda: method.check(3, 2, 8, GRID))


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    return quiet(tiny_wan())


@pytest.mark.parametrize(("name", "params", "layer", "words"), OF_MODEL)
def test_enable_refuses_and_touches_nothing(pipe, name, params, layer, words):
    late = {"dense_steps": STEPS - 1, "dense_layers": 0}
    state = {n: dict(vars(m)) for n, m in pipe.transformer.named_modules()}
    assert words in refusal(lambda: dit_sparse.enable(pipe, name, **params, **late))
    assert state == {n: dict(vars(m)) for n, m in pipe.transformer.named_modules()}
    # what was enabled before stays so
    dit_sparse.enable(pipe, "pisa", keep=0.5)
    refusal(lambda: dit_sparse.enable(pipe, name, **params, **late))
    found = dit_sparse.report(pipe)
    assert found.enabled and found.method == "pisa(keep=0.5)"
    dit_sparse.disable(pipe)


@pytest.mark.parametrize(("name", "params", "layer", "words"), OF_GENERATION)
def test_a_generation_is_refused_at_its_first_call(pipe, name, params, layer, words):
    """Though the first sparse step is the last."""
    steps = []

    def count(pipe, step, timestep, kwargs):
        steps.append(step)
        return kwargs

    late = {"dense_steps": STEPS - 1, "dense_layers": 0}
    frames = {"num_frames": 13, "callback_on_step_end": count}
    words = words.replace("step 0", f"step {STEPS - 1}")
    dit_sparse.enable(pipe, name, **params, **late)
    assert words in refusal(lambda: run(pipe, **frames)) and not steps
    assert "no call arrived" in " ".join(dit_sparse.report(pipe).notes)
    # the same settings raise again, others run
    assert words in refusal(lambda: run(pipe, **frames)) and not steps
    dit_sparse.enable(pipe, name, **SPARSE)
    run(pipe, **frames)
    assert steps == list(range(STEPS)) and dit_sparse.report(pipe).sparse_calls
    dit_sparse.disable(pipe)
