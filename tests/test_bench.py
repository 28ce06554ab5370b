"""The benchmark's own arithmetic, and what it refuses to time."""

import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dit_sparse.bench import baselines, kernel, machine, method
from dit_sparse.bench.baselines import Lists
from dit_sparse.bench.check import NotTimed, check_dense
from dit_sparse.bench.lists import Case
from dit_sparse.bench.machine import Timer, facts, read_clocks
from dit_sparse.bench.results import VIDEO_SHAPES, Limits, Result, Row, Shape, exponent
from dit_sparse.commands.timing import lengths, within
from dit_sparse.compute import attend
from dit_sparse.core import Grid
from dit_sparse.kernels.attention import block_sparse_attention

CPU = torch.device("cpu")


class Once(Timer):
    """One timed call, for time's sake."""

    def ms(self, call):
        return self.once(call)


TIMER = Once(CPU)
FEW = {"svg2": (("cold_iters", 2),)}
TINY, SMALL = Shape("tiny", 2, 300, 16), Grid(3, 8, 12)


def result(rows, kind="kernel"):
    return Result(kind, {"device": "d"}, Limits(100.0, 1000.0, 2), ("torch", "test"), rows)


def short(*args, **options):
    """A kernel that forgets the last block of every list."""
    return block_sparse_attention(*args[:3], args[3] - 1, args[4], **options)


def off(*args, **options):
    """A kernel whose output alone is right."""
    out, lse = block_sparse_attention(*args, **options)
    return out, lse + 0.5


def nan(*args, **options):
    out, lse = block_sparse_attention(*args, **options)
    return out * float("nan"), lse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("broken", [None, short, off, nan])
def test_wrong_kernels_are_not_timed(broken, dtype, monkeypatch):
    if broken:
        monkeypatch.setattr(kernel, "block_sparse_attention", broken)
    # long lists: the loss of one block in nineteen shows
    case = Case(replace(TINY, tokens=600), 0.95, 32, 32)
    rows = {row.what: row for row in kernel.run([case], TIMER, dtype, impl="torch")}
    ours = rows["ours (torch)"]
    assert ours.wrong == bool(broken) and (ours.ms is None) == bool(broken)
    assert "wrong output" in ours.why if broken else 0 < ours.error < 1
    assert rows["flash"].ms and "CUDA" in rows["cudnn"].why and "CUDA" in rows["flex"].why


def test_one_row_is_enough():
    """The worst sampled row decides, not the mean over rows."""
    x = kernel.draw(replace(TINY, tokens=48), CPU, torch.float32)
    out = torch.nn.functional.scaled_dot_product_attention(*x)
    assert check_dense(out, x, "it") < 1
    out[0, 1, 31] *= 1.01
    with pytest.raises(NotTimed, match="wrong output: it"):
        check_dense(out, x, "it")


# every part of a kernel call: order, columns by mask and by list, tail, choices of single queries
@pytest.mark.parametrize("name", ["psa", "pisa", "svg2", "vmoba", "sla"])
def test_methods_are_checked_and_timed(name, monkeypatch):
    monkeypatch.setattr(method, "SMALL", SMALL)
    case = method.Case(Shape.video("v", 1, 16, SMALL), name, 0.3, FEW.get(name, ()))
    row = list(method.run([case], TIMER, torch.float32, impl="torch"))[-1]
    assert row.ms and 0 < row.error < 1 and set(row.stages) == set(method.STAGES), row.why
    plan_density = result([row]).tflops(row) * row.ms * 1e9 / row.shape.flops()
    assert plan_density == pytest.approx(row.density) and 0.05 < row.density < 0.6

    def bent(*args, **options):
        out, lse = block_sparse_attention(*args, **options)
        return (out if options["impl"] == "reference" else out * 1.02), lse

    monkeypatch.setattr(attend, "block_sparse_attention", bent)
    row = list(method.run([case], TIMER, torch.float32, impl="torch"))[-1]
    assert row.wrong and row.ms is None and not row.stages and "small video" in row.why


def test_stages_are_timed_after_a_first_call(monkeypatch):
    """A call that compiles its kernel would be timed as seconds of compiling."""
    made = []
    inner = method.KernelCall.__call__
    monkeypatch.setattr(method, "SMALL", SMALL)
    monkeypatch.setattr(
        method.KernelCall, "__call__", lambda self: made.append(self) or inner(self)
    )

    class Later(Timer):
        def ms(self, call):
            assert not isinstance(call, method.KernelCall) or call in made
            return 1.0

    case = method.Case(Shape.video("v", 1, 16, SMALL), "pisa", 0.3)
    row = list(method.run([case], Later(CPU), torch.float32, impl="torch"))[-1]
    assert set(row.stages) == set(method.STAGES), row.why


def test_text_is_in_the_small_check(monkeypatch):
    """A method on a video with text is checked with text."""
    monkeypatch.setattr(method, "SMALL", SMALL)
    seen = []

    class Spy:
        def __getattr__(self, name):
            return getattr(built, name)

        def compute(self, x, plan, ctx):
            seen.append(ctx.grid.text)
            return built.compute(x, plan, ctx)

    built = method.Case(VIDEO_SHAPES["C"], "pisa", 0.2).build()
    like = torch.empty(0)
    for name, text in (("C", 17), ("A", 0)):
        seen.clear()
        method.verify(Spy(), like, replace(VIDEO_SHAPES[name], head_dim=16), "torch", {})
        assert set(seen) == {text}


def test_ratios():
    """Against the fastest dense, over kept, the limit, the fit: by hand."""
    shape = Shape("s", 2, 1000, 50)
    slow, fast = (Row(shape, n, sparse=False, ms=ms) for n, ms in (("a", 8.0), ("b", 4.0)))
    row = Row(shape, "m", density=0.25, ms=2.0, stages={"kept": 1.6})
    done = result([slow, fast, row, Row(shape, "c", sparse=False, why="no")])
    assert done.against_dense(row) == 2 and done.over_kept(row) == 1.25
    # a quarter of the steps at speed 1, the others at speed 2
    whole = replace(row, dense_steps=0.25)
    assert result([slow, fast, whole], "step").whole_run(whole) == pytest.approx(1 / 0.625)
    # 4 * 2 * 1000^2 * 50 * .25 = 1e8 operations
    assert done.tflops(row) == pytest.approx(0.05)
    # products 1e8 / 1e14 s = 1 us; bytes 4 * 2 * 1000 * 50 * 2 / 1e12 s = 0.8 us
    assert done.limits.ms(shape, 0.25) == pytest.approx(1e-3)
    assert done.limits.ms(shape, 0.01) == pytest.approx(8e-4)
    line = [Row(Shape("", 1, n, 8), "m", ms=3 * n**1.7) for n in (64, 1000, 30000)]
    assert exponent(line) == pytest.approx(1.7)
    assert list(result(line[::-1]).series().values()) == [line] and not result(line[:2]).series()
    json.dumps(done.to_dict(), allow_nan=False)


def test_time_over():
    cases = [SimpleNamespace(row=Row(TINY, str(i))) for i in range(3)]
    late = []
    assert list(within(cases, 3600, late)) == cases and not late
    assert not list(within(cases, -1, late)) and [row.what for row in late] == ["0", "1", "2"]
    assert all("--seconds" in row.why for row in late)


def test_lengths_and_facts():
    assert lengths("8k..64k,100") == [8192, 16384, 32768, 65536, 100]
    assert {"device", "python", "torch", "threads"} <= set(facts(CPU))


def test_clocks(tmp_path, monkeypatch):
    """Numbers come as numbers, what the driver does not know as text; no tool, no facts."""
    tool = tmp_path / "nvidia-smi"
    asked = tmp_path / "asked"
    tool.write_text(f"#!/bin/sh\necho $* > {asked}\necho 570.1.2, 1980, 1980, 2619, [N/A], 41\n")
    tool.chmod(0o755)
    properties = SimpleNamespace(uuid="ab-12")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    told = read_clocks(CPU)
    assert told["driver"] == "570.1.2" and told["clock_mhz"] == 1980 and told["watts"] == "[N/A]"
    assert "--id=GPU-ab-12" in asked.read_text()
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert read_clocks(CPU) == {}


def test_parts(monkeypatch):
    """What runs on the device belongs to the operator that launched it; all else is other."""
    event = lambda key, ms, on_cpu=True, noted=False: SimpleNamespace(  # noqa: E731
        key=key, self_device_time_total=1e3 * ms, is_user_annotation=noted,
        device_type=SimpleNamespace(name="CPU" if on_cpu else "CUDA"),
    )  # fmt: skip
    events = [
        event("aten::addmm", 5), event("aten::_cudnn_attention_forward", 3), event("aten::add", 1),
        event("dit_sparse::block_sparse_attention", 2), event("gemm", 5, False),
        event("fmha", 3, False), event("sparse", 2, False), event("rope", 4, False),
        event("step", 14, False, True),
    ]  # fmt: skip
    told = SimpleNamespace(key_averages=lambda: events)
    monkeypatch.setattr(machine, "profile", lambda **options: nullcontext(told))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    found = machine.parts(lambda: None, torch.device("cuda"))
    assert found == {"linear": 5, "kernel": 5, "other": 4}
    assert machine.parts(lambda: None, CPU) == {}


def test_flash4_lists(monkeypatch):
    """FlashAttention-4 gets every listed block as a full block and none as a masked one."""
    got = {}

    def forward(q, k, v, block_sparse_tensors):
        got.update(block_sparse_tensors)
        return (q,)

    cute = SimpleNamespace(flash_attn_func=forward, BlockSparseTensorsTorch=dict)
    monkeypatch.setattr(baselines, "_needs_cuda", lambda x: None)
    monkeypatch.setattr(baselines.importlib, "import_module", lambda name: cute)
    x = kernel.draw(TINY, CPU, torch.float32)
    lists = Lists(torch.ones(1, 2, 3, dtype=torch.int32), torch.full((1, 2, 3, 1), 2), 128, 128)
    assert torch.equal(baselines.flash4_sparse(x, lists)(), x.q)
    assert not got["mask_block_cnt"].any() and torch.equal(got["full_block_cnt"], lists.count)
    assert torch.equal(got["full_block_idx"], lists.index) and got["block_size"] == (128, 128)
