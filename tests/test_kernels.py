"""Every implementation of every kernel against the float64 oracle, with derived tolerances."""

import os
import re
from math import inf, nan

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from dit_sparse.kernels.attention import Columns, Cut, block_sparse_attention, implementation
from tests.kernel_cases import DEVICE, IMPLS, case, compare, offsets, ordered

RAGGED = Cut(40, offsets([7, 0, 40, 1, 20, 4], 2))
EMPTY_Q = Cut(40, offsets([0, 40, 9, 23]))
# fmt: off
ROWS = {
    "plain": {},
    "bf16": {"dtype": torch.bfloat16, "d": 128, "s_q": 96},
    "fp16": {"dtype": torch.float16, "s_kv": 96},
    "d40": {"d": 40},
    "d72 dv24": {"d": 72, "dv": 24},
    "d128 ragged both": {"d": 128, "s_q": 50, "s_kv": 75, "strided": True},
    "grouped causal offset": {"heads": 4, "kv_heads": 2, "s_q": 40, "s_kv": 100, "causal": True,
        "keep": 0.8},
    "causal short keys": {"s_q": 72, "s_kv": 40, "causal": True, "keep": 1.0},
    "causal wide blocks": {"q_blocks": 16, "kv_blocks": 64, "causal": True, "s_kv": 130},
    "unsorted with short block": {"s_kv": 75, "keep": 1.0, "shuffle": True},
    "odd block size": {"kv_blocks": 20, "q_blocks": 24},
    "large blocks": {"q_blocks": 150, "kv_blocks": 128, "s_q": 200, "s_kv": 300},
    "block larger than the sequence": {"kv_blocks": 128, "q_blocks": 128, "s_q": 30},
    "variable": {"q_blocks": EMPTY_Q, "kv_blocks": RAGGED},
    "variable causal strided": {"q_blocks": 32, "kv_blocks": RAGGED, "causal": True, "strided":
        True, "keep": 0.9},
    "capacity": {"capacity": 1, "keep": 0.7},
    "nothing kept": {"keep": 0.0},
    "columns": {"columns": 37, "bias": False, "mask": False},
    "columns bias": {"columns": 5, "mask": False, "dtype": torch.bfloat16},
    "columns bias mask grouped": {"columns": 20, "heads": 4, "kv_heads": 2, "strided": True},
    "columns only": {"columns": 20, "keep": 0.0},
    "columns causal variable": {"columns": 9, "causal": True, "kv_blocks": RAGGED, "q_blocks":
        EMPTY_Q},
    "order": {"orders": 1, "s_q": 50, "strided": True, "dtype": torch.bfloat16},
    "order per head, variable, causal": {"orders": 2, "q_blocks": EMPTY_Q, "causal": True, "s_kv":
        100, "keep": 0.9},
    "order columns tail": {"orders": 2, "columns": 20, "tail": True, "d": 40},
    "tail": {"columns": 20, "tail": True, "dtype": torch.bfloat16, "d": 40, "dv": 64},
    "column holds the row maximum": {"columns": 40, "tail": True, "gain": 8.0, "column_gain": 4.0,
        "keep": 0.3},
}
# fmt: on


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ROWS)
def test_attention(name, impl):
    """out and lse agree with the float64 oracle."""
    compare(ROWS[name], impl)


OPS = ["plain", "columns bias mask grouped", "tail", "variable", "order columns tail"]


@pytest.mark.parametrize("name", OPS)
def test_op(name):
    """The op compiles to one graph, passes opcheck, and has the oracle's gradients."""
    tensors, lists, options = case(**{**ROWS[name], "dtype": torch.float32})
    leaves = [x.detach().clone().requires_grad_() for x in tensors]

    def call(q, k, v):
        return block_sparse_attention(q, k, v, *lists, **options)

    want = ordered(leaves, lists, options)
    got = torch.compile(call, backend="aot_eager", fullgraph=True)(*leaves)
    expected, actual = (
        torch.autograd.grad(x[0].square().sum() + x[1][~x[1].isinf()].sum(), leaves)
        for x in (want, got)
    )
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)
    cuts = [getattr(options[x], y) for x in ("q_blocks", "kv_blocks") for y in ("size", "offsets")]
    c = options.get("columns", Columns(None, None))
    names = ("tail", "row_mask", "q_order")
    extra = (*vars(c).values(), *(options.get(name) for name in names))
    args = (*tensors, *lists, *cuts, *extra, False, 0.1, "torch", "none")
    torch.library.opcheck(torch.ops.dit_sparse.block_sparse_attention.default, args)


SCALES = (-1.0, 0, nan, inf, True, "1", torch.ones(()))
BAD = [
    ("kv_count", lambda a: {"kv_count": a["kv_count"].long()}),
    ("kv_index", lambda a: {"kv_index": a["kv_index"][:, :1]}),
    ("kv_index", lambda a: {"kv_index": a["kv_index"].tolist()}),
    ("k must", lambda a: {"k": a["k"][..., :8]}),
    ("k must", lambda a: {"k": a["k"].tolist()}),
    ("v must", lambda a: {"v": a["v"].half()}),
    ("q must", lambda a: {"q": a["q"][0]}),
    ("q must", lambda a: {"q": None}),
    ("q_blocks", lambda a: {"q_blocks": 0}),
    ("q_blocks", lambda a: {"q_blocks": 32.0}),
    ("q_blocks.offsets", lambda a: {"q_blocks": Cut(72, [0, 72])}),
    ("kv_blocks", lambda a: {"kv_blocks": True}),
    ("kv_blocks.offsets", lambda a: {"kv_blocks": Cut(9, torch.zeros(3, dtype=torch.int32))}),
    ("columns must", lambda a: {"columns": (a["k"], a["v"])}),
    ("columns.v", lambda a: {"columns": Columns(a["k"], a["v"][:, :, :3])}),
    ("columns.mask", lambda a: {"columns": Columns(a["k"], a["v"], None, a["q"])}),
    ("columns.index", lambda a: {"columns": listed(a, index=[0])}),
    ("columns.group", lambda a: {"columns": listed(a, group=1.5)}),
    ("columns.group", lambda a: {"columns": listed(a, group=True)}),
    ("tail", lambda a: {"tail": a["k"]}),
    ("tail", lambda a: {"columns": listed(a), "tail": torch.ones(2, 2, 64, 64).int()}),
    ("q_order", lambda a: {"q_order": torch.arange(71).expand(1, 1, -1)}),
    *(
        ("scale", lambda a, x=x: {"scale": x})
        for x in (-1.0, 0, nan, inf, True, "1", torch.ones(()))
    ),
    ("causal", lambda a: {"causal": None}),
    ("every tensor", lambda a: {"kv_count": a["kv_count"].to("meta")}),
    ("quant", lambda a: {"quant": True}),
    ("impl", lambda a: {"impl": "cuda"}),
]


def listed(a, **other):
    """Return columns whose lists are those of the keys, with some fields changed."""
    fields = {"count": a["kv_count"], "index": a["kv_index"], "group": 1, **other}
    return Columns(a["k"], a["v"], **fields)


@pytest.mark.parametrize(("word", "change"), BAD)
def test_bad_arguments(word, change):
    """A broken argument gives one line that names it."""
    (q, k, v), (count, index), options = case()
    call = {"q": q, "k": k, "v": v, "kv_count": count, "kv_index": index, **options}
    with pytest.raises(ValueError, match=word) as error:
        block_sparse_attention(**{**call, **change(call)})
    said = str(error.value)
    assert "\n" not in said and said.startswith(word.split()[0]) and len(said) < 200


def at(x, place, value):
    """Return a copy with another value at one place."""
    x = x.clone()
    x[place] = value
    return x


ENDS = torch.tensor([[[0, 30, 60, 72]]], dtype=torch.int32)
# what tensors hold is read on a CPU alone: on a GPU it would have to be waited for
BESIDE = {
    "kv_count must be lengths from 0 to 3, got -1": lambda a: at(a["kv_count"], (0, 0, 0), -1),
    "kv_count must be lengths from 0 to 3, got 0 to 4": lambda a: at(a["kv_count"], (0, 0, 0), 4),
    "kv_index must be ids from 0 to 2, got -1": lambda a: at(a["kv_index"], (-1, -1, -1, 0), -1),
    "kv_index must be ids from 0 to 2, got 0 to 3": lambda a: at(a["kv_index"], (1, 1, 2, 0), 3),
    "q_blocks.offsets must be positions": lambda a: Cut(72, at(ENDS, (0, 0, 3), 73)),
    "q_blocks.offsets must be steps from 0 to 29": lambda a: Cut(29, ENDS),
    "q_blocks.offsets must be steps": lambda a: Cut(72, at(ENDS, (0, 0, 1), 61)),
    "q_order must be places": lambda a: torch.arange(1, 73).expand(1, 1, -1),
    "q_order must be each": lambda a: (torch.arange(72) // 2).expand(1, 1, -1),
}


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU is not waited for")
@pytest.mark.parametrize("words", BESIDE)
def test_values_beside_their_axis(words):
    """An id, a length, a cut or an order that points nowhere gives one line, not a wrong result."""
    (q, k, v), (count, index), options = case(keep=0.9)
    call = {"q": q, "k": k, "v": v, "kv_count": count, "kv_index": index, **options}
    name = words.split()[0].removesuffix(".offsets")
    call[name] = BESIDE[words](call)
    with pytest.raises(ValueError, match="^" + re.escape(words)) as error:
        block_sparse_attention(**call)
    assert "\n" not in str(error.value)


def test_ids_past_a_count_are_nobodys():
    (q, k, v), (count, index), options = case(keep=0.3)
    past = torch.arange(index.shape[-1], device=DEVICE) >= count[..., None]
    assert past.any()
    for value in (-1, 1 << 20):
        out, lse = block_sparse_attention(q, k, v, count, index.masked_fill(past, value), **options)
        want = block_sparse_attention(q, k, v, count, index, **options)
        assert torch.equal(out, want[0]) and torch.equal(lse, want[1])


def test_auto():
    """On a CPU `auto` is torch and says why; an explicit triton without it would raise."""
    assert implementation(torch.empty(1, 1, 1, 64)) == ("torch", "tensors are on cpu")
