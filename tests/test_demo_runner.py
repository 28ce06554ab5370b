"""Who has the device of the demo page, for how long, and what is left when it is over."""

import gc
import threading
import weakref

import pytest
import torch

from dit_sparse.commands.request import Request
from dit_sparse.commands.sampling import RunError
from dit_sparse.demos.comparison import compare
from dit_sparse.demos.runner import (
    Done,
    Failed,
    Page,
    Runner,
    Step,
    Stopped,
    Turn,
    too_long,
)
from dit_sparse.errors import ArgumentError

pytest_plugins = "tests.demo_fixtures"


def test_one_at_a_time(runner):
    """Works of several visitors never overlap, and each ends with its own value."""
    inside, most, ends = [0], [0], []

    def job(turn):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        threading.Event().wait(0.02)
        inside[0] -= 1
        return turn

    def visit(name):
        ends.append([e for e in runner.work(name, job) if isinstance(e, Done)])

    threads = [threading.Thread(target=visit, args=(f"visitor {n}",)) for n in range(6)]
    [thread.start() for thread in threads]
    [thread.join(30) for thread in threads]
    assert most == [1] and len({id(end[0].value) for end in ends}) == 6


@pytest.mark.parametrize("way", ["stop", "leave"])
def test_stopping_frees_memory(runner, model, tmp_path, way):
    """What a stopped generation held is gone when its end is told, and the model is dense."""
    held = []

    def job(turn: Turn):
        class Watching(Page):
            def show(self, step, steps, note):
                held.append(weakref.ref(made.arguments["tensor"]))
                super().show(step, steps, note)

        page = Watching(turn)
        request = Request("a red circle", model, "cpu", method="pisa", steps=40, out=tmp_path)
        made = runner.job(request, page)
        made.arguments["tensor"] = torch.zeros(1000)
        from dit_sparse.commands.results import sample

        with page.steps("sparse") as bar:
            call = {k: v for k, v in made.arguments.items() if k != "tensor"}
            return sample(made.pipe, call, 0, bar)

    work = runner.work("me", job)
    first = next(event for event in work if isinstance(event, Step))
    assert (first.step, first.steps) == (1, 40)
    if way == "leave":
        work.close()
    else:
        assert runner.stop("me")
        with pytest.raises(Stopped):
            list(work)
    gc.collect()
    assert len(held) < 20 and all(ref() is None for ref in held)
    assert not runner.stop("me"), "nothing of this visitor runs"
    assert [type(e) for e in runner.work("me", lambda turn: 1)] == [Done]


def test_the_time_of_one_work_is_bounded(model, tmp_path):
    """What takes longer ends between two steps with a word for the visitor; the device is free."""
    runner = Runner("cpu", limit=0.2)
    request = Request("a red circle", model, "cpu", method="pisa", steps=1000, out=tmp_path)
    work, steps = runner.work("me", lambda turn: compare(runner, request, turn)), []
    with pytest.raises(Failed, match=r"longer than 0\.2 seconds.*choose fewer frames"):
        steps += [event for event in work if isinstance(event, Step)]
    assert list(runner.work("next", lambda turn: 5)) == [Done(5)]
    # loading a model is not the visitor's fault, and who stops is not told of a limit
    with pytest.raises(Stopped):
        list(runner.work("me", lambda turn: turn.stopped.set() or turn.check()))
    assert "15 minutes" in too_long(900) and "16.7 minutes" in too_long(1000)


def test_loading_does_not_count(monkeypatch):
    """The seconds of a work begin anew when its model is there."""
    runner = Runner("cpu", limit=0.2)

    def load(request, place):
        threading.Event().wait(0.3)
        return "pipe"

    def job(turn):
        found = runner.pipe(Request("any", "shapes"), Page(turn))
        turn.check()
        runner._pipe = None
        return found

    monkeypatch.setattr("dit_sparse.demos.runner.load", load)
    monkeypatch.setattr("dit_sparse.demos.runner.release", lambda: None)
    assert list(runner.work("me", job))[-1] == Done("pipe")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ArgumentError("--keep 2 must be\n at most 1"), "keep 2 must be at most 1"),
        (RunError("the GPU's memory is too small"), "the GPU's memory is too small"),
        (KeyError("/home/secret"), "Something went wrong here (KeyError)"),
        (SystemExit(3), "Something went wrong here (SystemExit)"),
    ],
)
def test_an_error_is_readable_and_the_next_work_runs(runner, error, says, capsys):
    """The visitor reads one line without secrets of the machine."""

    def job(turn):
        raise error

    with pytest.raises(Failed) as told:
        list(runner.work("me", job))
    assert says in str(told.value) and "secret" not in str(told.value)
    assert told.value.__cause__ is None and told.value.__context__ is None
    assert list(runner.work("me", lambda turn: 5)) == [Done(5)]


def test_a_model_that_cannot_be_tidied_up_keeps_nobody_waiting(monkeypatch):
    """Whoever waits hears of the end, and the next work finds the device free."""
    runner = Runner("cpu")

    def broken():
        raise RuntimeError("a CUDA error")

    with monkeypatch.context() as patched, pytest.raises(Failed):
        patched.setattr("dit_sparse.demos.runner.release", broken)
        list(runner.work("one", lambda turn: 1))
    assert [event.value for event in runner.work("two", lambda turn: 2)] == [2]
