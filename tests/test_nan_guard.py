"""Values that are not finite stop a generation, with the layer and step that made them."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from typer.testing import CliRunner

import dit_sparse
from dit_sparse.cli import app
from dit_sparse.compute.attend import Attend
from dit_sparse.errors import BrokenOutputError
from dit_sparse.integrations.session import Session
from tests.probe import DRAFT, LAYERS, STEPS, quiet, run
from tests.tiny.case import cases
from tests.tiny_wan import save, tiny_wan

attend = Attend.__call__


@dataclass(frozen=True)
class Broken(Attend):
    """Writes `value` in one element of one layer's output at one step."""

    value: float = math.nan
    at: tuple[int, int] = (1, 1)

    def __call__(self, x, plan, ctx):
        out = attend(self, x, plan, ctx)
        if (ctx.layer, ctx.step) == self.at:
            out[-1, -1, -1, 0] = self.value
        return out


@pytest.fixture
def pipe():
    return quiet(tiny_wan())


def broken(**fields):
    return replace(dit_sparse.get("draft", **DRAFT), compute=Broken(**fields))


# the last step has no step after it: it is looked at when the generation ends
PLACES = [(1, 1, math.nan), (0, 0, math.inf), (0, STEPS - 1, math.nan)]


@pytest.mark.parametrize(("layer", "step", "value"), PLACES)
def test_a_method_that_breaks(pipe, layer, step, value):
    dit_sparse.enable(pipe, "draft", **DRAFT)
    good = run(pipe)
    dit_sparse.enable(pipe, broken(value=value, at=(layer, step)))
    words = rf"layer {layer} of transformer gave NaN .* at step {step}: .*made them from finite v"
    with pytest.raises(BrokenOutputError, match=words):
        run(pipe)
    # what was seen is forgotten: the next generation stands for itself
    dit_sparse.enable(pipe, "draft", **DRAFT)
    assert torch.equal(run(pipe), good)


def test_a_model_that_is_broken(pipe):
    dit_sparse.enable(pipe, "draft", **DRAFT)
    with torch.no_grad():
        pipe.transformer.blocks[0].attn1.to_v.bias.fill_(math.nan)
    with pytest.raises(BrokenOutputError, match=r"layer 0 .* step 0: v was so already"):
        run(pipe)


def test_large_numbers_of_two_bytes_are_no_break():
    """What is summed to see it does not overflow: 17 values of 4,000 are beyond float16."""
    case = next(c for c in cases() if str(c) == "WanTransformer3DModel")
    model = case.build().half()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "attn1.to_v.bias" in name:
                weight.fill_(4e3)
    dit_sparse.enable(model, "draft", **DRAFT)
    given = case.inputs(case.texts)
    given = {k: v.half() if v.is_floating_point() else v for k, v in given.items()}
    with torch.no_grad():
        for _ in range(2):
            out = model(**given, return_dict=False)[0]
    assert out.isfinite().all() and dit_sparse.report(model).sparse_calls


def test_asked_once_per_step(pipe, monkeypatch):
    """One wait for the device per step, whatever the number of layers and branches."""
    asked, look = [], Session._stop_if_broken

    def counted(self):
        asked.append(len(self.seen))
        look(self)

    monkeypatch.setattr(Session, "_stop_if_broken", counted)
    dit_sparse.enable(pipe, "draft", **DRAFT)
    run(pipe)
    assert [count for count in asked if count] == [2 * LAYERS] * STEPS
    assert len(asked) <= STEPS + 1


def test_command_line(tmp_path, monkeypatch):
    model = str(save(tmp_path / "model"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(Attend, "__call__", lambda *given: Broken.__call__(Broken(), *given[1:]))
    options = ["--model", model, "--method", "draft", "--keep", "0.3", "--set", "dense_steps=0"]
    result = CliRunner().invoke(app, ["generate", "a red circle", *options])
    assert result.exit_code == 1 and not list((tmp_path / "here").iterdir())
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: layer 1 of transformer gave NaN") and "step 1" in last
    assert "Traceback" not in result.output
