"""`dit-sparse bench memory`: every byte that a call holds at once, and none that it does not."""

import json
from importlib import import_module

import pytest
import torch

from dit_sparse.bench import memory, method, table
from dit_sparse.bench.results import Limits, Result, Row, Shape
from dit_sparse.core import Grid, Method
from dit_sparse.kernels.attention import block_sparse_attention
from tests.test_bench import FEW, TIMER
from tests.test_cli import check, run

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
SHAPE = Shape.video("v", 2, 16, Grid(3, 8, 12))
MEMORY = ("bench", "memory", "--heads", "1", "--head-dim", "16")


@pytest.mark.parametrize("device", DEVICES)
def test_peak_by_hand(device):
    """Two of the three tensors are there at once; what was there before does not count."""
    device, n = torch.device(device), 1 << 16
    before = torch.ones(n, device=device)

    def call():
        a = before + 1
        b = a * 2
        del a
        return b.sum(), b - 1

    held, out = memory.peak(call, device)
    # a sum is one block of the allocator at most
    assert 8 * n <= held <= 8 * n + 1024 and float(out[0]) == 4 * n


@pytest.mark.parametrize("name", ["pisa", "svg2", "vmoba"])
def test_rows(name):
    """The output is part of a call; its plan is, too; the next row sees nothing of the last."""
    case = method.Case(SHAPE, name, 0.3, FEW.get(name, ()))
    dense, first, again = memory.run([case, case], TIMER, torch.float32, impl="torch")
    size = SHAPE.bytes(4) // 4
    square = 4 * SHAPE.heads * SHAPE.tokens**2
    assert dense.what == "dense" and not dense.sparse and size <= dense.bytes["call"] < square
    # constants are made once and kept
    assert again.bytes["plan"] <= first.bytes["plan"] and 0 < first.density < 0.7
    assert again.bytes["call"] == first.bytes["call"]
    assert 0 < first.bytes["plan"] <= first.bytes["call"] and first.bytes["call"] > size


def test_a_square_shows(monkeypatch):
    """A method that makes S x S numbers is seen, by its bytes and by the fit."""
    inner = Method.plan

    def wasteful(self, x, ctx):
        torch.ones(x.q.shape[2], x.q.shape[2]).sum()
        return inner(self, x, ctx)

    shapes = [Shape.video(str(n), 1, 16, Grid(n, 8, 12)) for n in (4, 8, 16)]
    cases = [method.Case(shape, "sparse_vdit", 0.2) for shape in shapes]

    def fit():
        rows = list(memory.run(cases, TIMER, torch.float32, impl="torch"))
        result = Result("memory", {"device": "d"}, Limits(1.0, 1.0, 4), ("torch", ""), rows)
        told = {e["series"]: e["exponent"] for e in result.to_dict()["exponents"]}
        text = "\n".join(table.notes(result))
        assert f"keep 0.2: memory grows as tokens^{told['sparse_vdit']:.2f}" in text
        return rows[-1].bytes["plan"], told["sparse_vdit"]

    plan, power = fit()
    monkeypatch.setattr(Method, "plan", wasteful)
    more, steeper = fit()
    assert more >= 4 * 1536**2 > plan and power < 1.6 < 1.9 < steeper


def test_the_operator_holds_no_more_than_its_kernel():
    """An output that nobody fills was a quarter of what the leanest methods hold."""
    q, k, v = (torch.randn(1, 2, 512, 16) for _ in range(3))
    lists = torch.ones(1, 2, 8, dtype=torch.int32), torch.zeros(1, 2, 8, 1, dtype=torch.int32)
    cuts = {"q_blocks": 64, "kv_blocks": 64}
    whole = memory.peak(
        lambda: block_sparse_attention(q, k, v, *lists, **cuts, scale=1.0, impl="torch"), CPU
    )[0]
    inner = import_module("dit_sparse.kernels.gather").block_sparse_attention
    own = memory.peak(lambda: inner(q, k, v, *lists, **cuts, scale=1.0), CPU)[0]
    assert whole < own + q.nbytes / 2


def test_wrong_and_impossible_are_told(monkeypatch):
    case = method.Case(SHAPE, "draft", 0.3)
    monkeypatch.setattr(Method, "__call__", lambda self, x, ctx: x.q / 0)
    row = list(memory.run([case], TIMER, torch.float32))[-1]
    assert row.wrong and row.amount is None and "not finite" in row.why
    monkeypatch.setattr("dit_sparse.bench.kernel.free_bytes", lambda device: 1 << 10)
    row = list(memory.run([case], TIMER, torch.float32))[-1]
    assert row.amount is None and "GiB are free" in row.why


def test_command(tmp_path):
    out, picture = tmp_path / "m.json", tmp_path / "m.svg"
    sizes = ("--grid", "1x8x8,2x8x8", "--tokens", "1560", "--method", "draft")
    shown = run(*MEMORY, *sizes, "--markdown", "--out", out, "--plot", picture)
    assert shown.exit_code == 0, shown.output
    told = json.loads(out.read_text())
    assert [r["shape"]["tokens"] for r in told["rows"]] == [64, 64, 128, 128, 1560, 1560]
    assert all("ms" not in r and r["bytes"]["call"] > 0 for r in told["rows"])
    assert {e["series"] for e in told["exponents"]} == {"dense", "draft"}
    head, _, *body = shown.stdout.strip().splitlines()
    assert "bytes per token and head" in head and len(body) == 6
    last = told["rows"][-1]
    assert body[-1].split("|")[-2].strip() == f"{last['bytes']['call'] / 1560:.0f}"
    assert picture.read_text().rstrip().endswith("</svg>")
    assert run("bench", "show", out, "--markdown").stdout == shown.stdout


def test_bytes_are_read_back(tmp_path):
    row = Row(SHAPE, "m", bytes={"plan": 3, "call": 5})
    result = Result("memory", {"device": "d"}, Limits(1.0, 1.0, 2), ("torch", ""), [row])
    result.write(tmp_path / "r.json")
    assert Result.read(tmp_path / "r.json").rows == [row] and row.amount == 5
    assert table.line(row) == "v m: 4.66e-09 GiB"


REFUSED = [
    ([*MEMORY, "--tokens", "8k..4k"], ["--tokens 8k..4k"]),
    ([*MEMORY, "--grid", "3x8"], ["--grid 3x8", "21x30x52"]),
    ([*MEMORY, "--method", "piza"], ["piza", "pisa"]),
    ([*MEMORY, "--keep", "0"], ["--keep 0", "above 0"]),
    ([*MEMORY, "--set", "order=1"], ["--set", "--method"]),
    (["bench", "memory", "--heads", "0"], ["--heads 0"]),
]


@pytest.mark.parametrize(("args", "words"), REFUSED, ids=str)
def test_refused(args, words, monkeypatch):
    monkeypatch.setattr("dit_sparse.bench.machine.measure_limits", None)
    check(run(*args), 2, words)
