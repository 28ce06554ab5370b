"""The parts of the demo page that need no browser and no server."""

import gc
import math
import re
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from dit_sparse.commands.request import Request
from dit_sparse.commands.sampling import RunError
from dit_sparse.demos import form
from dit_sparse.demos.comparison import compare
from dit_sparse.demos.runner import Done, Failed, Page, Runner, Said, Step, Stopped, Turn
from dit_sparse.errors import ArgumentError
from tests.tiny_wan import save

GOOD = {
    "prompt": "a red circle moves right", "method": "pisa", "keep": 0.5, "steps": 2,
    "size": form.OWN, "frames": form.OWN, "seed": 0, "settings": "", "model": "shapes",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def runner():
    return Runner("cpu")


def asked(folder, **changes):
    values = {**GOOD, **changes}
    return form.request([values[name] for name in form.FIELDS], ("shapes",), "cpu", folder)


def test_the_form_asks_for_what_it_says(tmp_path):
    made = asked(tmp_path, size="96 x 160", frames="17", seed=7.0)
    assert (made.height, made.width, made.frames, made.seed) == (96, 160, 17, 7)
    assert asked(tmp_path).params == {"keep": 0.5}
    assert asked(tmp_path).frames is None
    # whatever is offered can be asked for
    for size in form.sizes("shapes"):
        for frames in form.lengths("shapes"):
            asked(tmp_path, size=size, frames=frames)
    for _, name in form.methods():
        asked(tmp_path, method=name)
    for prompt in form.prompts("shapes"):
        assert not form.trained("shapes").unknown_words(asked(tmp_path, prompt=prompt).prompt)


def test_the_methods_are_those_for_video():
    from dit_sparse.registry import get

    names = [name for _, name in form.methods()]
    assert len(names) >= 10 and "dense" not in names
    assert not [name for name in names if get(name).schedule.phase]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("prompt", value) for value in ("", " \n", None, "a " * 151)],
        *[("keep", value) for value in (0, -1, 1.01, math.nan, math.inf, None, "much")],
        *[("steps", value) for value in (0, 51, 2.5, None, 1e9)],
        *[("seed", value) for value in (-1, 2**32, 0.5, None, math.nan)],
        *[("size", value) for value in ("0 x 0", "64", "9999 x 9999", "-1 x 4", "70 x 64")],
        *[("settings", value) for value in ("order", "tile=[1,1,1]", "table=/etc/passwd", 3)],
        *[("frames", value) for value in ("0", "130", "many", "5.5", 18)],
        *[("model", value) for value in ("../shapes", "/etc", "someone/else", None)],
        *[("method", value) for value in ("dense2", "", "minference")],
    ],
)
def test_wrong_fields_are_named(field, value, tmp_path):
    """Each wrong value is refused by its own field, in one line without options of a shell."""
    with pytest.raises(form.Refused) as told:
        asked(tmp_path, **{field: value})
    text = str(told.value)
    assert told.value.field == field and text and "\n" not in text
    assert not re.search(r"(^|\s)--\w", text)


def test_a_comparison(runner, model, tmp_path):
    """It is the dense and the sparse generation of the command, told step by step."""
    request = Request("a red circle", model, "cpu", method="pisa", keep=0.4, steps=3, out=tmp_path)
    events = list(runner.work("me", lambda turn: compare(runner, request, turn)))
    made = events[-1].value
    steps = [(e.label, e.step, e.steps) for e in events if isinstance(e, Step)]
    assert steps == [(label, n, 3) for label in ("dense", "pisa") for n in (1, 2, 3)]
    assert all(e.picture.dtype == np.uint8 for e in events if isinstance(e, Step))
    assert [e for e in events if isinstance(e, Said)]
    assert sorted(tmp_path.iterdir()) == sorted(made.files) and made.shape == (9, 64, 64)
    assert len(made.densities) == 3 and np.mean(made.densities) == pytest.approx(made.density)
    assert made.speedup == pytest.approx(made.seconds[0] / made.seconds[1])
    assert made.psnr > 10 and 0 < made.ssim <= 1
    # a budget of everything is dense
    whole = replace(request, keep=1.0, out=tmp_path)
    (*_, end) = runner.work("me", lambda turn: compare(runner, whole, turn))
    assert end.value.psnr > made.psnr and end.value.densities == pytest.approx([1.0] * 3)


def test_a_picture_is_compared_too(runner, model, tmp_path):
    request = Request("a", model, "cpu", method="pisa", steps=1, frames=1, out=tmp_path)
    (*_, end) = runner.work("me", lambda turn: compare(runner, request, turn))
    assert {file.suffix for file in end.value.files} == {".png"} and end.value.shape[0] == 1


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
    first = next(work)
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
