"""Queries, keys and values of a language model, and what settings the docs find from them."""

import re
from pathlib import Path

import pytest
import torch

from dit_sparse.core import QKV
from dit_sparse.errors import ArgumentError
from dit_sparse.integrations import transformers as text
from tests.tiny_text import BAND, FAMILIES, TOKENS, build, sparse

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def ids():
    return torch.randint(2, 61, (2, TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_what_the_layers_attend_with(family, ids):
    """Of every kind of layer; the model gives the same logits before and after."""
    model, seen = build(family), {}
    model.set_attn_implementation("eager")

    def hook(module, args, kwargs, out):
        seen[module.layer_idx] = out[1]

    layers = text._layers(model)[1]
    hooks = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        before = model(ids).logits
        for one in hooks:
            one.remove()
        found = text.tensors(model, ids)
        assert torch.equal(model(ids).logits, before)
    assert sorted(found) == sorted(seen) == list(range(len(layers)))
    for x in found.values():
        assert isinstance(x, QKV) and x.q.shape[:3:2] == x.k.shape[:3:2] == (2, TOKENS)
    if FAMILIES[family][1]:
        return
    for number, x in found.items():
        k = x.k.repeat_interleave(x.q.shape[1] // x.k.shape[1], 1)
        hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu_(1)
        logits = (x.q @ k.mT * layers[number].scaling).masked_fill(hidden, float("-inf"))
        assert (logits.softmax(-1) - seen[number]).abs().max() < BAND


def test_some_layers(ids):
    model = build()
    assert list(text.tensors(model, ids, layers=[1])) == [1]
    with pytest.raises(ArgumentError, match=r"layers=\[7\].*below 2"):
        text.tensors(model, ids, layers=[7])
    with pytest.raises(ArgumentError, match=r"enabled.*disable"):
        text.tensors(text.enable(model, sparse()), ids)
    assert text.tensors(text.disable(model), ids)


def test_a_pass_that_fails_leaves_no_trace(ids):
    model = build()
    before = model.config._attn_implementation
    with pytest.raises(IndexError):
        text.tensors(model, ids + 999)
    assert model.config._attn_implementation == before
    assert not any(text.linked(m) or vars(m).get("_dit_sparse_seen") for m in model.modules())


def test_the_lines_of_the_docs_run(monkeypatch):
    """Each setting they find is accepted by its method, in a model."""
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "text.md").read_text(), re.S)
    space = {}
    exec(compile(code, "docs/text.md", "exec"), space)
    model, tokens = space["model"], space["tokens"]
    assert space["alpha"] >= 1 and space["beta"] > 0
    blocks = tokens.shape[1] // 64
    assert {goal.shape[2:] for goal in space["goal"].values()} == {(blocks, blocks)}
    with torch.no_grad():
        model(tokens)
    assert text.report(model).sparse_calls
