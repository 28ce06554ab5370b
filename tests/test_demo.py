"""The parts of the demo page that need no browser and no server."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from dit_sparse.commands.request import Request
from dit_sparse.demos import form
from dit_sparse.demos.comparison import compare
from dit_sparse.demos.runner import (
    Said,
    Step,
)

pytest_plugins = "tests.demo_fixtures"

GOOD = {
    "prompt": "a red circle moves right", "method": "pisa", "keep": 0.5, "steps": 2,
    "size": form.OWN, "frames": form.OWN, "seed": 0, "settings": "", "model": "shapes",
}  # fmt: skip


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
    steps = [(e.label, e.run, e.step, e.steps) for e in events if isinstance(e, Step)]
    runs = (("dense", (1, 2)), ("pisa", (2, 2)))
    assert steps == [(label, run, n, 3) for label, run in runs for n in (1, 2, 3)]
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
