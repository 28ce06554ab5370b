"""What a report says, and how a step is told apart."""

import json
from types import SimpleNamespace

import pytest

from dit_sparse.integrations.clock import Clock
from dit_sparse.reporting import Cell, Event, Guarded, Progress, Report


def report(layers, steps, first):
    cells = tuple(
        Cell(
            "transformer",
            n,
            s,
            2,
            2 * (s >= first),
            0.2 if s >= first else 1.0,
            {} if s >= first else {"why": 2},
        )
        for n in range(layers)
        for s in range(steps)
    )
    return Report("WanPipeline", "pisa(keep=0.2)", steps=steps, cells=cells, notes=("a note",))


@pytest.mark.parametrize(
    ("layers", "steps", "first"), [(2, 4, 1), (40, 50, 13), (1, 1, 0), (57, 100, 100)]
)
def test_text_fits_a_terminal(layers, steps, first):
    found = report(layers, steps, first)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) < 25
    assert ("0.200" in str(found)) == (first < steps) and ("dense" in str(found)) == (first > 0)
    assert found.density == pytest.approx((first + 0.2 * (steps - first)) / steps)
    assert found.reasons == ({"why": 2 * layers * first} if first else {})
    assert json.loads(json.dumps(found.to_dict()))["calls"] == 2 * layers * steps
    assert found.progress.step == steps - 1


def test_empty_report():
    found = Report("WanPipeline", "pisa")
    assert (found.density, found.calls, found.progress) == (1.0, 0, Progress(-1, 0, None))
    assert "0 calls" in str(found)


def context(name, step=None, steps=None):
    return SimpleNamespace(name=name, step_index=step, num_inference_steps=steps)


C, U = "cond", "uncond"
# (context, timestep value) of each call -> (generation, step, branch)
CALLS = {
    "told": (
        [(context(n, s, 3), 0) for s in (0, 1) for n in (C, U)] + [(context(C, 0, 3), 0)],
        [(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 0, 0)],
    ),
    "aborted at step 0": (
        [(context(C, 0, 3), 0), (context(C, 0, 3), 0), (context(U, 0, 3), 0)],
        [(1, 0, 0), (2, 0, 0), (2, 0, 1)],
    ),
    "names and values": (
        [(C, 9), (U, 9), (C, 5), (U, 5), (C, 9), (U, 9)],
        [(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 0, 0), (2, 0, 1)],
    ),
    "names, aborted at step 0": ([(C, 9), (C, 9), (U, 9)], [(1, 0, 0), (2, 0, 0), (2, 0, 1)]),
    "values": (
        [(None, 9), (None, 9), (None, 5), (None, 2), (None, 9)],
        [(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 2, 0), (2, 0, 0)],
    ),
    "rising values": (
        [(None, 0), (None, 1), (None, 2), (None, 0)],
        [(1, 0, 0), (1, 1, 0), (1, 2, 0), (2, 0, 0)],
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_clock_without_pipeline(name):
    clock, (calls, expected) = Clock(), CALLS[name]
    seen = []
    for told, value in calls:
        branch = clock.tick("0", told, None, lambda value=value: float(value))
        seen.append((clock.generation, clock.step, branch))
    assert seen == expected
    assert clock.steps == (3 if getattr(calls[0][0], "name", None) else 0)


def test_clock_with_pipeline():
    """The loop variable of a pipeline tells the step; nothing is read from the device."""
    clock, seen = Clock(), []
    for length in (3, 2):
        times = [object() for _ in range(length)]
        pipe = SimpleNamespace(scheduler=SimpleNamespace(timesteps=times), _num_timesteps=length)
        for time in times[:2]:
            for name in (C, U):
                pipe._current_timestep = time
                seen.append(
                    (clock.tick("0", name, pipe, None), clock.generation, clock.step, clock.steps)
                )
    assert seen == [(b, g, s, n) for g, n in ((1, 3), (2, 2)) for s in (0, 1) for b in (0, 1)]


def test_layers_of_one_step_share_a_note():
    seen = [("a", 0, 3, 0.1), ("a", 2, 3, 0.25), ("b", 2, 3, 0.3), ("a", 1, 4, 0.2)]
    events = tuple(Event(*event, 0.05) for event in seen)
    assert Guarded(0.05, 9, 0.3, events).notes() == [
        "guard: layers 0, 2 of a are dense after step 3: error up to 0.25, bound 0.05",
        "guard: layer 2 of b is dense after step 3: error 0.3, bound 0.05",
        "guard: layer 1 of a is dense after step 4: error 0.2, bound 0.05",
    ]
    assert Guarded(0.05, 9, 0.01).notes() == []
