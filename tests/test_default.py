"""No method named: the profile found for the model, else the best all-round one, told once."""

import logging

import pytest
import torch

import dit_sparse
from dit_sparse import Profile, profile
from dit_sparse.commands.attention import WORTHWHILE, choose, default
from dit_sparse.commands.request import Request
from dit_sparse.integrations import published
from dit_sparse.integrations.diffusers import profile_of
from dit_sparse.integrations.gain import attention_share, told, weights
from dit_sparse.profile import find, unnamed
from tests.tiny_wan import tiny_wan

FOUND = Profile(
    "tiny", "mixed", {"letters": ["a pisa keep=0.5"], "table": ["aa", "aa"]},
    measured={"device": "NVIDIA Some GPU"},
)  # fmt: skip


@pytest.fixture
def pipe(monkeypatch):
    """A tiny Wan pipeline that passes for a model with a found profile."""
    row = published.Published("tiny", published.WAN, {"num_layers": 2})
    monkeypatch.setattr(published, "MODELS", (row,))
    shelf = {"tiny--mixed": FOUND}

    def of(model, method):
        return shelf.get(f"{model}--{method}")

    for module in (profile, dit_sparse.integrations.diffusers):
        for name in {"find", "shipped_for"} & set(vars(module)):
            if getattr(module, name) is find:
                monkeypatch.setattr(module, name, of)
    return tiny_wan()


def generate(pipe):
    size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    start = torch.Generator().manual_seed(0)
    pipe("a red circle", **size, guidance_scale=1.0, output_type="latent", generator=start)


def test_found_profile_is_taken_and_told_once(pipe, caplog):
    dit_sparse.enable(pipe)
    assert profile_of(pipe) == FOUND
    with caplog.at_level(logging.WARNING, logger="dit_sparse"):
        generate(pipe)
        generate(pipe)
    (record,) = caplog.records
    assert all(word in record.message for word in ("tiny--mixed", "at best", "arithmetic"))
    told_here = dit_sparse.report(pipe)
    assert 0 < told_here.share < 1 and told_here.sparse_calls
    assert any("NVIDIA Some GPU" in note and "not on CPU" in note for note in told_here.notes)


@pytest.mark.parametrize("params", [{"keep": 0.5}, {"quant": "fp8"}], ids=str)
def test_settings_of_a_method_mean_the_all_round_one(pipe, params):
    dit_sparse.enable(pipe, **params)
    assert profile_of(pipe).method == "pisa"


def test_a_named_method_is_not_told(pipe, caplog):
    dit_sparse.enable(pipe, "pisa", keep=0.5)
    generate(pipe)
    assert not caplog.records


def test_settings_of_another_model_are_noted(pipe):
    words = "settings made for another; this is tiny"
    dit_sparse.enable(pipe, Profile("another", "pisa", {"keep": 0.5}))
    assert words in str(dit_sparse.report(pipe))
    for mine in (Profile("tiny", "pisa"), "pisa"):
        dit_sparse.enable(pipe, mine)
        assert "settings made for" not in str(dit_sparse.report(pipe))


def test_other_models_get_the_all_round_method():
    assert unnamed(None) == unnamed("no such model") == "pisa"
    assert unnamed("wan2.1-14b") == find("wan2.1-14b", "pisa")


def test_command_line_chooses_alike(tmp_path):
    best = unnamed("shapes")
    large, small = default(WORTHWHILE, "shapes"), default(WORTHWHILE - 1, "shapes")
    assert large.name == best.method and large.value == best.build() and "shapes--" in large.reason
    assert small.name == "dense" and default(None, "shapes").value == large.value
    assert choose(Request("x", compare=True), "shapes").value == large.value
    assert choose(Request("x", keep=0.5), "shapes").name == "pisa"
    assert choose(Request("x"), "shapes") is None


def test_share_is_counted():
    """Against the products of a transformer of linear layers, one by one."""
    root = torch.nn.Sequential(
        torch.nn.Linear(8, 24), torch.nn.Linear(24, 8), torch.nn.LayerNorm(8)
    )
    assert weights(root) == 8 * 24 * 2
    tokens, layers, width = 100, 3, 8
    pairs = layers * tokens * tokens * width * 2
    share = attention_share(weights(root), layers, width, tokens)
    assert share == pytest.approx(pairs / (pairs + tokens * weights(root)))
    assert "50%" in told(0.5) and "2.0x" in told(0.5)
