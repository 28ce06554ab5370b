"""Which kernel runs a model: a missing one is told by `enable`, a slow one once."""

import logging
import sys

import pytest
import torch

import dit_sparse
from dit_sparse.errors import MissingDependencyError
from dit_sparse.integrations import transformers as text
from dit_sparse.integrations.seam import hook_of
from dit_sparse.kernels.choice import triton_missing
from tests.tiny import wan
from tests.tiny_text import build


@pytest.fixture
def model():
    return wan.CASES[0].build()


@pytest.mark.parametrize(
    ("platform", "help"),
    [
        ("linux", "pip install triton"),
        ("win32", "pip install triton-windows"),
        ("darwin", "there is none for macOS"),
    ],
)
def test_missing_triton_is_told_before_anything_runs(model, monkeypatch, platform, help):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(sys, "platform", platform)
    triton_missing.cache_clear()
    try:
        x, language = torch.zeros(1, 1, 64, 16), build()
        calls = (
            lambda: dit_sparse.enable(model, "pisa", impl="triton"),
            lambda: text.enable(language, "xattention", impl="triton"),
            lambda: dit_sparse.attention(x, x, x, "pisa", impl="triton"),
        )
        for call in calls:
            with pytest.raises(MissingDependencyError) as caught:
                call()
            said = str(caught.value)
            assert said.startswith("impl='triton' cannot run: triton cannot be imported")
            assert said.endswith(f": {help}")
        assert hook_of(model) is None
        # what can do without is not concerned
        dit_sparse.enable(model, "pisa")
    finally:
        triton_missing.cache_clear()


@pytest.mark.parametrize(
    ("impl", "name", "device", "told"),
    [
        ("auto", "torch", "cuda", 1),
        ("auto", "torch", "cpu", 0),
        ("auto", "triton", "cuda", 0),
        ("torch", "torch", "cuda", 0),
    ],
)
def test_a_slow_kernel_is_told_once(model, caplog, impl, name, device, told):
    session = hook_of(dit_sparse.enable(model, "pisa", impl=impl)).session
    with caplog.at_level(logging.WARNING, logger="dit_sparse"):
        for _ in range(3):
            session._ran(name, "some reason", torch.device(device))
    assert [r.message for r in caplog.records] == [
        "dit_sparse: attention runs on the slow torch kernel: some reason"
    ] * told
    assert session.implementations == {name: "some reason"}
