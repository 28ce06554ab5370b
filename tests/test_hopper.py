"""The Hopper kernel: it builds everywhere, says what it cannot take, and is right where it runs."""

import json
import os
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import triton

import dit_sparse
from dit_sparse.compute import attend
from dit_sparse.kernels.attention import Columns, Cut, block_sparse_attention, kernel
from tests.kernel_cases import case, compare, offsets

TESTED = (
    ".".join(triton.__version__.split(".")[:2]) in import_module("dit_sparse.kernels.hopper").TESTED
)
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
BASE = {"dtype": torch.bfloat16, "d": 128, "q_blocks": 128, "kv_blocks": 128, "s_q": 700}
# fmt: off
ROWS = {
    "plain": {},
    "fp16 grouped strided": {"dtype": torch.float16, "heads": 4, "kv_heads": 2, "strided": True},
    "ragged": {"s_q": 690, "s_kv": 810, "keep": 0.7},
    "wide blocks, unsorted": {"q_blocks": 256, "kv_blocks": 192, "s_kv": 1000, "shuffle": True},
    "narrow blocks share a step": {"kv_blocks": 64, "s_kv": 1030},
    "columns": {"columns": 200},
    "tail": {"columns": 70, "tail": True, "kv_blocks": 64, "s_kv": 777, "heads": 4, "kv_heads": 2},
    "columns only": {"columns": 70, "tail": True, "keep": 0.0},
    "large logits": {"gain": 8.0, "columns": 40, "column_gain": 4.0},
    "unequal queries": {"q_blocks": Cut(300, offsets([200, 0, 300, 1, 199], 2)), "columns": 33},
    "d 64": {"d": 64},
    "d 64, all": {"d": 64, "kv_blocks": 64, "s_kv": 777, "columns": 70, "tail": True, "gain": 4.0,
        "strided": True, "q_blocks": Cut(300, offsets([200, 0, 300, 1, 199], 2))},
    "unequal keys": {"kv_blocks": Cut(300, offsets([200, 0, 300, 1, 199], 2)), "keep": 0.7},
    "clusters": {"q_blocks": Cut(300, offsets([200, 0, 300, 1, 199], 2)), "columns": 33, "tail":
        True, "kv_blocks": Cut(90, offsets([70, 31, 90, 16, 45, 0, 64, 17, 80, 48], 2)),
        "s_kv": 461, "strided": True},
    "all but two of one size": {"kv_blocks": Cut(64, offsets([*[64] * 40, 30, 64, 20], 2)), "s_kv":
        2674},
    "odd block size": {"kv_blocks": 100, "s_kv": 777},
    "listed columns": {"columns": 300, "group": 16, "bias": True, "mask": False},
    "listed columns alone": {"columns": 100, "group": 8, "bias": True, "mask": False, "keep": 0.0,
        "tail": True, "d": 64, "heads": 4, "kv_heads": 2},
    "causal": {"causal": True, "keep": 0.7},
    "causal offset, grouped": {"causal": True, "s_q": 400, "s_kv": 790, "kv_blocks": 64, "heads": 4,
        "kv_heads": 2, "d": 64},
    "causal short keys": {"causal": True, "s_kv": 300, "keep": 1.0},
    "causal unequal": {"causal": True, "q_blocks": Cut(300, offsets([200, 0, 300, 1, 199], 2)),
        "kv_blocks": Cut(300, offsets([100, 0, 300, 1, 299], 2)), "keep": 0.8},
    "order": {"orders": 1, "strided": True, "s_q": 690},
    "order per head, unequal": {"orders": 2, "q_blocks": Cut(300, offsets([200, 0, 300, 1, 199],
        2)), "columns": 33, "tail": True},
    "order d 64": {"orders": 2, "d": 64, "kv_blocks": 64, "s_kv": 777},
    "nothing kept": {"keep": 0.0},
    "fewer tokens than a tile": {"s_q": 30, "s_kv": 20},
}
# fmt: on


@pytest.mark.skipif(not HOPPER, reason="no GPU of compute capability 9.0")
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", ROWS)
def test_oracle(name):
    """out and lse agree with the float64 oracle, as those of the portable kernel must."""
    compare({**BASE, **ROWS[name]}, "hopper")


FP8 = (
    "plain", "fp16 grouped strided", "ragged", "narrow blocks share a step", "d 64", "causal",
    "causal offset, grouped", "unequal queries", "order", "nothing kept",
    "fewer tokens than a tile",
)  # fmt: skip


@pytest.mark.skipif(not HOPPER, reason="no GPU of compute capability 9.0")
@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", [*FP8, "blocks of 80", "blocks of 192"])
def test_fp8(name):
    """In fp8 it differs from attention to the rounded tensors by the rounding of its weights, half
    a step of 3 bits, and from the exact one by .05 of the output."""
    odd = {"q_blocks": 256, "kv_blocks": int(name[10:]), "s_kv": 1000} if name not in ROWS else {}
    row = {**BASE, **ROWS.get(name, odd), "columns": 0}
    (q, k, v), lists, options = case(**row)
    got, twin, most = (
        block_sparse_attention(q, k, x, *lists, **options, impl=impl, quant="fp8")
        for impl, x in (("hopper", v), ("reference", v), ("reference", v.abs()))
    )
    exact = (x.double() for x in (q, k, v))
    want = block_sparse_attention(*exact, *lists, **options, impl="reference")
    seen = ~want[1].isinf()
    assert torch.equal(got[1].isinf(), ~seen) and not got[0].isnan().any()
    bound = 2.0**-4 * most[0] + 4 * torch.finfo(q.dtype).eps
    assert ((got[0] - twin[0]).abs() <= bound).all()
    assert ((got[1] - twin[1]).abs()[seen] <= 4e-3).all()
    off = (got[0].double() - want[0]).norm() / want[0].norm().clamp(min=1e-9)
    assert off <= 0.05


@pytest.mark.skipif(not HOPPER, reason="no GPU of compute capability 9.0")
def test_order():
    """Neither the order of a list nor how lists of other rows are long changes a row's output."""
    q, k, v = (torch.randn(1, 2, 4096, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    index = torch.rand(1, 2, 32, 32, device="cuda").argsort(-1).int()
    count = torch.randint(0, 32, (1, 2, 32), device="cuda", dtype=torch.int32)
    count[0, 0, 5] = 9
    cuts = {"q_blocks": 128, "kv_blocks": 128, "impl": "hopper"}
    out, lse = block_sparse_attention(q, k, v, count, index, **cuts)
    alone = torch.zeros_like(count)
    alone[0, 0, 5] = 9
    again, _ = block_sparse_attention(q, k, v, alone, index, **cuts)
    rows = slice(5 * 128, 6 * 128)
    assert torch.equal(out[0, 0, rows], again[0, 0, rows])
    assert torch.equal(lse.isinf(), (count == 0).repeat_interleave(128, -1))


@pytest.mark.skipif(not TESTED, reason=f"triton {triton.__version__} runs the portable kernel")
def test_builds():
    """The installed Triton compiles it for compute capability 9.0: products, copies, roles."""
    environment = {n: x for n, x in os.environ.items() if n != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.hopper_build"],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == 5 and all(min(row.values()) > 0 for row in rows)


REFUSED = {
    "dtype": {"dtype": torch.float32},
    "head dims": {"d": 96},
    "query blocks": {"q_blocks": 64},
    "fewer than 16": {"kv_blocks": 8},
    "fewer than 64": {"q_blocks": Cut(128, torch.zeros(1, 1, 9, dtype=torch.int32))},
    "fill half a tile": {"q_blocks": Cut(64, torch.zeros(1, 1, 5, dtype=torch.int32))},
    "causal": {"causal": True, "columns": "all"},
    "choose for themselves": {"row_mask": torch.ones(1, 1, 256, 2, dtype=torch.bool)},
    "listed": {"columns": "listed"},
    "aligned": {"shift": 1},
}


@pytest.fixture
def on_hopper(monkeypatch):
    """Take this machine for one that has such a GPU, until something is launched."""
    from dit_sparse.kernels import choice, hopper

    monkeypatch.setattr(hopper, "_device_why_not", lambda device: "")
    monkeypatch.setattr(choice, "implementation", lambda q: ("triton", "a GPU"))


def call(dtype=torch.bfloat16, d=128, shift=0, **options):
    """Return q, k, v [1, 1, 256, d], `shift` numbers into their memory, and the options."""
    x = torch.zeros(3, 256 * d + 8, dtype=dtype)[:, shift:][:, : 256 * d].view(3, 1, 1, 256, d)
    if options.get("columns") == "all":
        options["columns"] = Columns(x[1], x[2])
    if options.get("columns") == "listed":
        listed = torch.ones(1, 1, 2, dtype=torch.int32)
        options["columns"] = Columns(x[1], x[2], None, None, listed, listed[..., None], 1)
    return x.unbind(), {"q_blocks": 128, "kv_blocks": 128, **options}


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("word", REFUSED)
def test_refused(word):
    """What it does not take goes to the portable kernel, with the reason; asked for, it raises."""
    tensors, options = call(**REFUSED[word])
    name, reason = kernel(*tensors, **options)
    assert name == "triton" and word in reason
    lists = torch.ones(1, 1, 2, dtype=torch.int32), torch.zeros(1, 1, 2, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="impl='hopper' cannot run"):
        import_module("dit_sparse.kernels.hopper").block_sparse_attention(
            *tensors, *lists, **options
        )


@pytest.mark.parametrize(
    ("sizes", "box"),
    [([64] * 4, 64), ([192] * 4, 64), ([100] * 4, 16), ([64] * 40 + [30], 64), ([64, 30], 16)],
)
def test_boxes(sizes, box):
    """Blocks of one size, or nearly all of them so, are fetched in larger boxes than others."""
    hopper = import_module("dit_sparse.kernels.hopper")
    most, equal = max(sizes), len(set(sizes)) == 1
    cut = Cut(most, None if equal else offsets(sizes, 1))
    assert hopper._box(cut, sum(sizes), 128, 16) == box


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("d", [64, 128])
def test_taken(d):
    """Whole tiles of queries and boxes of keys run on it."""
    tensors, options = call(d=d, q_blocks=256, kv_blocks=192)
    assert kernel(*tensors, **options) == ("hopper", "a GPU")


def test_untested_compilers(monkeypatch):
    """A Triton that nobody tried, and Triton's interpreter, run the portable kernel."""
    hopper = import_module("dit_sparse.kernels.hopper")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert "interpreter" in hopper._device_why_not.__wrapped__(torch.device("cuda"))
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(triton, "__version__", "4.0.1")
    assert "4.0.1 was not tested" in hopper._device_why_not.__wrapped__(torch.device("cuda"))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled(monkeypatch):
    """What the report wants to know of the device stays out of a graph: it cannot be traced."""
    asked = []
    monkeypatch.setattr(attend, "kernel", lambda *args, **shape: asked.append(shape))
    q, k, v = torch.randn(3, 1, 2, 128, 16)
    method, grid = dit_sparse.get("draft", keep=0.4), dit_sparse.Grid(2, 8, 8)
    torch._dynamo.reset()
    torch.compile(
        lambda q, k, v: dit_sparse.attention(q, k, v, method, grid=grid), backend="eager"
    )(q, k, v)
    assert not asked


def test_elsewhere():
    """On a CPU the reason is the device."""
    tensors, options = call()
    assert kernel(*tensors, **options) == ("torch", "tensors are on cpu")
