"""One step of each architecture: published sizes, honest random weights, one warm generation."""

import json
from dataclasses import replace

import diffusers
import pytest
import torch

import dit_sparse
from dit_sparse.bench import machine, step
from dit_sparse.bench.architectures import ARCHITECTURES
from dit_sparse.bench.results import WITHOUT
from dit_sparse.integrations.adapters import adapters
from dit_sparse.integrations.diffusers import model_name
from tests.test_bench import Once
from tests.test_cli import check, run

CPU = torch.device("cpu")
TINY = ("bench", "step", "--tiny", "--quick")
# billions of parameters as published, and tokens of one self-attention
SIZES = {
    "wan2.1-1.3b": (1.42, [21 * 30 * 52]),
    "wan2.1-14b": (14.29, [21 * 30 * 52, 21 * 45 * 80]),
    "hunyuanvideo": (12.82, [33 * 45 * 80 + 256]),
    "cogvideox-5b": (5.57, [13 * 30 * 45 + 226]),
    "flux.1": (11.90, [64 * 64 + 512]),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Methods are checked on a smaller video, for time's sake."""
    monkeypatch.setattr("dit_sparse.bench.method.SMALL", dit_sparse.Grid(3, 8, 12))


def case(name, methods=("pisa",)):
    a = ARCHITECTURES[name]
    return step.Case(a, a.small[0], tuple((m, ()) for m in methods), small=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_sizes(name):
    a = ARCHITECTURES[name]
    with torch.device("meta"):
        model = getattr(diffusers, a.transformer)(**a.config)
    count = sum(p.numel() for p in model.parameters()) / 1e9
    assert (round(count, 2), [a.shape(s, False).tokens for s in a.sizes]) == SIZES[name]
    assert model_name(model) == name, "it would not take its published settings"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_built_on_meta_equals_built_at_once(name):
    """No buffer is lost, and the step is a step: finite, and not the same whatever the input."""
    it = case(name)
    model = it.architecture.build(CPU, torch.float32, True)
    twin = getattr(diffusers, it.architecture.transformer)(**it.architecture.arguments(True))
    twin.load_state_dict(model.state_dict())
    outs = [step.steps(it, m.eval(), CPU, torch.float32)() for m in (model, twin)]
    assert torch.equal(*outs) and outs[0].isfinite().all() and outs[0].std() > 0
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    again = it.architecture.build(CPU, torch.float32, True)
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_all_architectures_run():
    told = json.loads(run(*TINY, "--json").stdout)
    for name, a in ARCHITECTURES.items():
        rows = {r["what"]: r for r in told["rows"] if r["shape"]["name"].startswith(name)}
        dense, pisa = rows["dense native"], rows["pisa"]
        assert dense["ms"] > 0 and dense["density"] == 1
        if a.transformer in adapters():
            assert rows[WITHOUT]["ms"] > 0 and 0 <= pisa["attention"] < 1
            assert 0 < pisa["density"] < 1 and pisa["error"] < 1
        else:
            assert pisa["why"] == f"no adapter yet for {a.transformer}"
    profiles = {r["settings"].get("profile") for r in told["rows"] if "settings" in r}
    assert {"wan2.1-14b--pisa", "flux.1--pisa"} <= profiles


def test_compiled_blocks(monkeypatch):
    """Asked for, every block is compiled, dense and sparse alike, and the rows say so."""
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(self))
    it = replace(case("flux.1"), compiled=True)
    model = it.build(CPU, torch.float32)
    assert compiled == [*model.transformer_blocks, *model.single_transformer_blocks]
    assert it.row.shape.name.endswith(" compiled")
    compiled.clear()
    case("flux.1").build(CPU, torch.float32)
    assert not compiled


def test_dense_first_steps_count():
    """A method that leaves a fifth of the steps dense is slower over a whole generation."""
    method, settings, share = case("wan2.1-14b").method("sparse_vdit")
    assert share == 0.2 and method.schedule.dense_steps == 0
    assert settings == {"profile": "wan2.1-14b--sparse_vdit"}


def test_calls_are_later_steps_of_one_generation():
    """Warm state: a clustering method keeps its centroids, and no dense first step is timed."""
    it = case("wan2.1-14b", ("svg2",))
    model = it.architecture.build(CPU, torch.float32, True)
    call, method = step.steps(it, model, CPU, torch.float32), it.method("svg2")[0]
    assert method.schedule.dense_steps == 0 and method.schedule.dense_layers == 1
    dit_sparse.enable(model, method)
    with torch.no_grad():
        for _ in range(4):
            call()
    cells = dit_sparse.report(model).cells
    assert {(c.step, c.calls) for c in cells} == {(n, 1) for n in range(4)}
    assert {c.layer for c in cells if c.sparse} == {1}


def test_without_attention_is_without():
    """The step called so returns v in every layer, and the model is whole again afterwards."""
    it = case("wan2.1-1.3b")
    model = it.architecture.build(CPU, torch.float32, True)
    call = step.steps(it, model, CPU, torch.float32)
    seen = []
    with torch.no_grad():
        rows = list(step.run([it], Once(CPU), torch.float32))
        assert [r.what for r in rows] == ["dense native", WITHOUT, "pisa"]
        dit_sparse.enable(model, step.FREE)
        for block in model.blocks:
            block.attn1.to_v.register_forward_hook(lambda m, args, out: seen.append(out))
            block.attn1.to_out[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        call()
    assert len(seen) == 4 and all(
        torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True)
    )


def test_dense_only_is_refused():
    """A method that never ran has no time of its own."""
    it = case("wan2.1-1.3b", ("draft",))
    it = replace(it, methods=(("draft", (("dense_layers", 2),)),))
    row = list(step.run([it], Once(CPU), torch.float32))[-1]
    assert row.ms is None and "every call was dense" in row.why


REFUSED = [
    ((*TINY, "--model", "sora"), ["--model sora", "wan2.1-14b"]),
    ((*TINY, "--size", "480x832"), ["--size 480x832", "480x832x81"]),
    ((*TINY, "--size", "100x96x9"), ["100x96x9", "multiples of 16"]),
    ((*TINY, "--method", "piza"), ["--method piza", "pisa"]),
    ((*TINY, "--guard", "5"), ["--guard 5", "below 1"]),
    ((*TINY, "--keep", "0"), ["--keep 0", "above 0"]),
    (("bench", "step"), ["no GPU", "--tiny"]),
]


@pytest.mark.parametrize(("args", "words"), REFUSED, ids=str)
def test_refused(args, words, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    check(run(*args), 2, words)


def test_guard(monkeypatch):
    """Each method is timed without and with the guard, which is there in the second alone."""
    it, seen = replace(case("wan2.1-1.3b", ("draft",)), guard=0.9), []
    enable = dit_sparse.api.enable

    def spy(model, method, **options):
        seen.append(options.get("guard"))
        return enable(model, method, **options)

    monkeypatch.setattr("dit_sparse.api.enable", spy)
    with torch.no_grad():
        rows = list(step.run([it], Once(CPU), torch.float32))[2:]
    assert [r.label for r in rows] == ["draft", "draft guard 0.9"] and all(r.ms for r in rows)
    assert seen == [None, None, 0.9]


def test_a_first_look_profiles_no_dense_step(monkeypatch):
    profiled = []
    monkeypatch.setattr(step, "parts", lambda call, device: profiled.append(1) or {})
    for quick, count in ((True, 2), (False, 3)):
        profiled.clear()
        with torch.no_grad():
            list(step.run([case("wan2.1-1.3b")], Once(CPU, quick), torch.float32))
        assert len(profiled) == count


def test_weights_that_do_not_fit(monkeypatch):
    monkeypatch.setattr("dit_sparse.bench.architectures.free_bytes", lambda device: 1 << 30)
    shown = run("bench", "step", "--model", "wan2.1-14b", "--device", "cpu")
    check(shown, 1, ["nothing was timed", "53.2 GiB", "1.0 GiB are free"])


def test_the_fastest_dense_runs_without_its_mask(monkeypatch):
    """Where a model gives a mask that hides nothing, a row has dense attention without it."""
    monkeypatch.setattr(step, "_attention_alone", lambda *_: {"cudnn": 2.0, "flash": 1.0})
    monkeypatch.setattr(step, "BACKENDS", {"flash": "native", "cudnn": "native"})
    for name, rows in (("hunyuanvideo", ["dense flash, no mask"]), ("wan2.1-1.3b", [])):
        told = [r.what for r in step.run([case(name, ())], Once(CPU), torch.float32)]
        assert told == ["dense flash", *rows, WITHOUT]
    x = torch.randn(3, 1, 2, 60, 16, dtype=torch.float64)
    dense = replace(step.FREE, compute=step.Baseline("flash"))
    torch.testing.assert_close(dit_sparse.attention(*x, dense), dit_sparse.attention(*x, "dense"))


def test_settings_of_cases():
    """--keep holds for all but a case that says otherwise; a published budget for none of them."""
    cases = ("--keep", ".3", "--method", "draft", "--case", "pisa keep=.5 queries=128")
    told = json.loads(run(*TINY, "--model", "wan2.1-1.3b", *cases, "--json").stdout)
    settings = [row["settings"] for row in told["rows"][-2:]]
    assert settings[0]["keep"] == 0.3
    assert (settings[1]["keep"], settings[1]["queries"]) == (0.5, 128)
    alone = json.loads(run(*TINY, "--model", "wan2.1-1.3b", "--set", "queries=32", "--json").stdout)
    assert alone["rows"][-1]["what"] == "pisa" and alone["rows"][-1]["settings"]["queries"] == 32


def test_long_calls_are_timed_three_times_or_once(monkeypatch):
    """A median of three, the first look among them; for a quick look that one is enough."""
    for quick, expected in ((False, 2600.0), (True, 3000.0)):
        times = iter((3000.0, 2500.0, 2600.0))
        monkeypatch.setattr(machine.Timer, "once", lambda self, call, times=times: next(times))
        assert machine.Timer(CPU, quick=quick).ms(lambda: None) == expected
