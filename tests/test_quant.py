"""Attention in fp8: what is written, what it costs in accuracy, and who computes it."""

import math
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import dit_sparse
from dit_sparse.compute.attend import Attend
from dit_sparse.kernels import quant, reference
from dit_sparse.kernels.attention import Columns, Cut, block_sparse_attention, kernel
from dit_sparse.kernels.lists import pack_lists
from tests.kernel_cases import DEVICE, case, close, offsets, wide

# half a unit of the last of 3 bits, and of the least number where the largest is 448
STEP, LEAST = 2.0**-4, 2.0**-10 / 448
# fmt: off
ROWS = {
    "plain": {"kv_blocks": 128, "s_q": 300},
    "grouped strided": {"heads": 4, "kv_heads": 2, "strided": True, "dtype": torch.bfloat16},
    "ragged": {"s_q": 90, "s_kv": 275, "kv_blocks": 128, "keep": 0.7},
    "causal": {"causal": True, "s_q": 70, "s_kv": 130},
    "unequal": {"q_blocks": Cut(40, offsets([30, 0, 40, 2], 2)), "s_q": 72,
        "kv_blocks": Cut(90, offsets([70, 31, 0, 19], 2)), "s_kv": 120},
    "nothing kept": {"keep": 0.0},
}
# fmt: on


def relative(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


def in_fp8(q, k, v, scale):
    """Return dense attention in float64 to what fp8 holds of q, k, v, with weights in fp8 too."""
    x = quant.quantise(q, k, v, scale, permuted=False, impl="torch")
    q, k, v = (t.double() for t in quant.restore(x))
    s = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * scale
    p = (s - s.amax(-1, keepdim=True)).exp()
    held = (p * 256).to(torch.float8_e4m3fn).double() / 256
    return held @ v.repeat_interleave(q.shape[1] // v.shape[1], 1) / p.sum(-1, keepdim=True)


@pytest.mark.parametrize("by_tile", [True, False])
@pytest.mark.parametrize("permuted", [True, False])
@pytest.mark.usefixtures("poison")
def test_twin(by_tile, permuted):
    """The kernels write what torch writes, of strided tensors and a last tile that is short."""
    q, k, v = case(torch.bfloat16, 64, heads=4, kv_heads=2, s_q=70, s_kv=150, strided=True)[0]
    got, want = (
        quant.quantise(q, k + 3, v, 0.2, by_tile=by_tile, permuted=permuted, impl=impl)
        for impl in ("triton", "torch")
    )
    for name, a, b in zip(got._fields, got, want, strict=True):
        used = 3 if name == "kv_scale" else a.shape[-1]
        a, b = a[..., :used].float(), b[..., :used].float()
        assert a.shape == b.shape
        # on a GPU a quotient may differ in its last bit, and then a number by one step
        near = 0.13 if name in ("q", "k", "v") and DEVICE == "cuda" else 1e-5
        torch.testing.assert_close(a, b, rtol=near, atol=1e-5 if name == "shift" else near / 64)
        assert (a != b).float().mean() < 1e-3 or name == "shift"


def test_numbers():
    """k and v are rounded by half a step at most, q by its square; v is permuted, not lost."""
    q, k, v = (torch.randn(2, 2, 200, 64, dtype=torch.float64).exp() for _ in range(3))
    x = quant.quantise(q, k, v, 1.0, impl="torch")
    order = quant.order_of(torch.arange(256))
    assert (
        sorted(order.tolist()) == list(range(256))
        and (order // 16 == torch.arange(256) // 16).all()
    )
    k = k - quant.key_mean(k)
    for got, want, step in zip(
        quant.restore(x, order), (q, k, v), (STEP**2, STEP, STEP), strict=True
    ):
        bound = step * want.abs() + LEAST * want.abs().amax()
        assert ((got - want).abs() <= bound).all()


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("name", ROWS)
def test_rounded(name, impl):
    """out and lse are those of attention to what fp8 holds, and lse moves by no more than the most
    that a logit moves."""
    (q, k, v), lists, options = case(**ROWS[name])
    got = block_sparse_attention(q, k, v, *lists, **options, impl=impl, quant="fp8")
    whole = reference.block_sparse_attention(*map(wide, (q, k, v)), *lists, **options)
    scale, by_tile = q.shape[-1] ** -0.5, quant.has_tiles(options["kv_blocks"])
    x = quant.quantise(q, k, v, scale, by_tile=by_tile, permuted=False, impl="torch")
    q8, k8, v8 = (t.double() for t in quant.restore(x))
    out, lse = reference.block_sparse_attention(q8, k8, v8, *lists, **options)
    close(got[0], got[0], out, q.dtype)
    close(got[1], got[1], lse + x.shift * math.log(2), torch.float32)
    mean = quant.key_mean(k).double()
    q, k, k8 = (
        q.double(),
        *(t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k - mean, k8)),
    )
    most = (q @ k.mT - q8 @ k8.mT).abs().amax(-1) * scale
    seen = ~lse.isinf()
    assert ((got[1] - whole[1]).abs() <= most + 1e-4)[seen].all()


@pytest.mark.parametrize("d", [64, 128])
def test_random(d):
    """On random inputs the error is at most .05 of the output, weights in fp8 included."""
    q, k, v = (torch.randn(1, 2, n, d) for n in (512, 2048, 2048))
    assert relative(in_fp8(q, k, v, d**-0.5), F.scaled_dot_product_attention(q, k, v)) <= 0.05


def test_constant_key():
    """A vector added to all keys changes lse alone, by its product with the query: so large a one
    would drown the keys if their mean were not taken away."""
    q, k, v = (torch.randn(1, 2, 256, 64, dtype=torch.float64) for _ in range(3))
    away = 100 * torch.randn(64, dtype=torch.float64)
    lists = pack_lists(torch.ones(1, 2, 2, 2, dtype=torch.bool))
    options = {"q_blocks": 128, "kv_blocks": 128, "impl": "torch", "quant": "fp8"}
    want, moved = (block_sparse_attention(q, x, v, *lists, **options) for x in (k, k + away))
    torch.testing.assert_close(moved[0], want[0], rtol=1e-6, atol=1e-6)
    shift = (q @ away / 8).float()
    torch.testing.assert_close(moved[1], want[1] + shift, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_refused(impl):
    """What has no quantised form is refused in one line where it was asked for."""
    (q, k, v), lists, options = case(columns=5)
    with pytest.raises(ValueError, match="columns are not quantised"):
        block_sparse_attention(q, k, v, *lists, **options, impl=impl, quant="fp8")
    del options["columns"]
    with pytest.raises(ValueError, match="without gradients"):
        block_sparse_attention(q.requires_grad_(), k, v, *lists, **options, quant="fp8")
    with pytest.raises(ValueError, match="none or fp8"):
        block_sparse_attention(q, k, v, *lists, **options, quant="int8")
    with pytest.raises(ValueError, match="the portable kernel has none"):
        block_sparse_attention(q.detach(), k, v, *lists, **options, impl="triton", quant="fp8")


CHOICES = {
    "in fp8": ("hopper", {}),
    "in fp8 ": ("hopper", {"kv_blocks": 80}),
    "not in fp8: columns": ("hopper", {"columns": True}),
    "not in fp8: key blocks": ("hopper", {"kv_blocks": 100}),
    "not in fp8: the portable kernel": ("triton", {"q_blocks": 64}),
}


@pytest.mark.parametrize("reason", CHOICES)
def test_choice(reason, monkeypatch):
    """On a GPU of that class the report says whether a call runs in fp8, and why not."""
    choice, hopper = (import_module(f"dit_sparse.kernels.{n}") for n in ("choice", "hopper"))
    monkeypatch.setattr(hopper, "_device_why_not", lambda device: "")
    monkeypatch.setattr(choice, "implementation", lambda q: ("triton", "a GPU"))
    x = torch.zeros(3, 1, 1, 256, 128, dtype=torch.bfloat16).unbind()
    name, options = CHOICES[reason]
    if options.get("columns"):
        options = {"columns": Columns(x[1], x[2])}
    options = {"q_blocks": 128, "kv_blocks": 128, **options}
    got = kernel(*x, **options, quant="fp8")
    assert got[0] == name and f"; {reason.strip()}" in got[1]


def test_method():
    """A method in fp8 is a value of its own, close to the exact one, and dense has none."""
    q, k, v = torch.randn(3, 1, 2, 256, 64)
    method, grid = dit_sparse.get("draft", keep=0.5), dit_sparse.Grid(4, 8, 8)
    rounded = method.with_quant("fp8")
    assert rounded != method and rounded.with_quant("none") == method
    assert isinstance(rounded.compute, Attend) and rounded.compute.quant == "fp8"
    want = dit_sparse.attention(q, k, v, method, grid=grid)
    got = dit_sparse.attention(q, k, v, method, grid=grid, quant="fp8")
    assert torch.equal(got, dit_sparse.attention(q, k, v, rounded, grid=grid))
    assert 0 < relative(got, want) <= 0.05
    for bad in ({"method": "dense", "quant": "fp8"}, {"method": "draft", "quant": "fp4"}):
        with pytest.raises(dit_sparse.DitSparseError, match="quant="):
            dit_sparse.attention(q, k, v, grid=grid, **bad)


def test_real(monkeypatch):
    """So it is on the queries, keys and values of the built-in model, call by call."""
    diffusers = pytest.importorskip("diffusers")
    folder = Path(dit_sparse.__file__).parent / "models" / "shapes" / "transformer"
    model, errors = diffusers.WanTransformer3DModel.from_pretrained(folder), []
    whole = F.scaled_dot_product_attention

    def attend(query, key, value, **options):
        out = whole(query, key, value, **options)
        if query.shape[2] == key.shape[2]:
            errors.append(relative(in_fp8(query, key, value, query.shape[-1] ** -0.5), out))
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    config = model.config
    noise, text = torch.randn(1, config.in_channels, 5, 16, 16), torch.randn(1, 16, config.text_dim)
    with torch.no_grad():
        model(noise, torch.tensor([999]), text)
    assert len(errors) == config.num_layers and max(errors) <= 0.05
