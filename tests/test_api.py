"""What a call without a model says of its arguments."""

import pytest
import torch

import dit_sparse
from dit_sparse.core import Grid
from dit_sparse.errors import ArgumentError, UnknownNameError
from dit_sparse.schedule import Schedule


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: dit_sparse.get("pissa"), ["pissa", "pisa"]),
        (lambda: dit_sparse.get("pisa", keep=0), ["keep=0"]),
        (lambda: dit_sparse.get("pisa", keep=1.5), ["keep=1.5"]),
        (lambda: dit_sparse.get("pisa", kep=0.5), ["kep", "keep"]),
        (lambda: dit_sparse.get("pisa", keep="much"), ["keep='much'"]),
        (lambda: dit_sparse.get("pisa", tile=(4, 4)), ["tile=(4, 4)", "three"]),
        (lambda: dit_sparse.get("draft", patch=(-4, 4)), ["patch=(-4, 4)"]),
        (lambda: dit_sparse.get("draft", rule="x"), ["rule='x'", "head", "row"]),
        (lambda: Schedule(dense_steps=-1), ["dense_steps=-1"]),
        (lambda: Schedule(dense_steps=1.5), ["dense_steps=1.5"]),
        (lambda: Schedule(dense_layers=(1, -2)), ["dense_layers=(1, -2)"]),
        (lambda: Grid(0, 1, 1), ["frames=0"]),
    ],
)
def test_bad_values(call, words):
    with pytest.raises((ArgumentError, UnknownNameError)) as caught:
        call()
    assert all(w in str(caught.value) for w in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"impl": "cuda"}, ["impl='cuda'", "torch"]),
        ({"scale": -1.0}, ["scale=-1.0"]),
        ({"v": torch.zeros(1, 4, 40, 8).half()}, ["float16"]),
        ({"grid": Grid(1, 1, 5)}, ["5 tokens", "40"]),
        ({"q": torch.zeros(3, 4)}, ["q has shape (3, 4)"]),
        ({n: torch.zeros(1, 4, 40, 8).to(torch.float8_e5m2) for n in "qkv"}, ["float8", "2 to 8"]),
        # what the kernels alone know
        (
            {"method": "sla", "quant": "fp8", "q": torch.zeros(1, 4, 40, 8, requires_grad=True)},
            ["gradients", "fp8"],
        ),
        ({"k": torch.zeros(1, 3, 40, 8), "v": torch.zeros(1, 3, 40, 8)}, ["4 heads", "3"]),
    ],
)
def test_bad_tensors(change, words):
    q = k = v = torch.zeros(1, 4, 40, 8)
    call = {"q": q, "k": k, "v": v, "method": "pisa", **change}
    with pytest.raises(ArgumentError) as caught:
        dit_sparse.attention(**call)
    assert all(w in str(caught.value) for w in words)


def test_a_plan_takes_what_attention_takes():
    x = torch.zeros(3, 1, 4, 40, 8)
    options = {"impl": "torch", "quant": "fp8", "scale": 0.5, "keep": 0.5}
    assert dit_sparse.plan(*x, "sla", **options).level.shape[:2] == (1, 4)
