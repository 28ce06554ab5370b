"""Learned weights: read from safetensors alone, by layer, and given to the calls of that layer."""

import os
import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import dit_sparse
from dit_sparse import Profile, weights
from dit_sparse.commands.request import parse_setting
from dit_sparse.errors import ArgumentError
from dit_sparse.weights import check_weights, layer_weights
from tests.probe import quiet, run
from tests.tiny_wan import tiny_wan

CPU = torch.device("cpu")
DIM, TOKENS = 16, 192
LAYOUTS = {
    "turbo": "blocks.{}.self_attn.attn_op.local_attn.{}",
    "numbered": "{}.{}",
    "diffusers": "transformer.transformer_blocks.{}.attn.0.{}",
    "stack2": "stack2.layers.{}.{}",
}


def tensors(layers=2, dim=DIM, seed=0, dtype=torch.float32):
    """One projection per layer: {layer: {name: tensor}}."""
    g = torch.Generator().manual_seed(seed)
    return {
        layer: {
            "proj_l.weight": torch.randn(dim, dim, generator=g).to(dtype),
            "proj_l.bias": torch.randn(dim, generator=g).to(dtype),
        }
        for layer in range(layers)
    }


def save(path, table, layout="numbered", **extra):
    flat = {LAYOUTS[layout].format(i, n): t for i, row in table.items() for n, t in row.items()}
    save_file({**flat, **extra}, path)
    return str(path)


def draw(dtype=torch.float64, dim=DIM):
    return torch.randn(3, 1, 2, TOKENS, dim, dtype=dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(tmp_path, layout, dtype):
    """Bit for bit in float32, in any naming, beside the other tensors of a model."""
    table = tensors(12, dtype=dtype)
    other = {"blocks.3.attn1.to_q.weight": torch.zeros(4, 4), "my_proj_l.weight": torch.zeros(1)}
    method = dit_sparse.get("sla", weights=save(tmp_path / "w.safetensors", table, layout, **other))
    for layer in (0, 3, 11):
        found = layer_weights(method, layer, CPU)
        assert found.keys() == table[layer].keys()
        for name, tensor in found.items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, table[layer][name].float())
        # the same tensors, not a copy per call
        again = layer_weights(method, layer, CPU)
        assert all(again[n] is t for n, t in found.items())
        moved = layer_weights(method, layer, torch.device("meta"))
        assert all(t.device.type == "meta" for t in moved.values())


def test_reads_only_what_it_needs(tmp_path, monkeypatch):
    path = save(tmp_path / "w.safetensors", tensors(), other=torch.zeros(3))
    read, opened = [], weights._open

    @contextmanager
    def spy(path):
        with opened(path) as file:

            def get(key):
                read.append(key)
                return file.get_tensor(key)

            yield SimpleNamespace(keys=file.keys, get_slice=file.get_slice, get_tensor=get)

    monkeypatch.setattr(weights, "_open", spy)
    layer_weights(dit_sparse.get("sla", weights=path), 1, CPU)
    assert sorted(read) == ["1.proj_l.bias", "1.proj_l.weight"]


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "w.safetensors"
    method = dit_sparse.get("sla", weights=save(path, tensors(seed=1)))
    first = layer_weights(method, 0, CPU)["proj_l.bias"]
    save(path, tensors(seed=2))
    os.utime(path, ns=(1, 1))
    assert not torch.equal(layer_weights(method, 0, CPU)["proj_l.bias"], first)


def test_attention_uses_layer_0(tmp_path):
    q, k, v = draw()
    table = tensors()
    path = save(tmp_path / "w.safetensors", table)
    swapped = save(tmp_path / "s.safetensors", {0: table[1], 1: table[0]})
    alone = tmp_path / "alone.safetensors"
    save_file(table[0], alone)  # names without a number
    outs = [dit_sparse.attention(q, k, v, "sla", weights=str(p)) for p in (path, swapped, alone)]
    plain = dit_sparse.attention(q, k, v, "sla")
    assert not torch.allclose(outs[0], plain) and not torch.allclose(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_enable_gives_each_layer_its_own(tmp_path):
    pipe, table = quiet(tiny_wan()), tensors()
    settings = {"keep": 0.3, "block": (16, 16)}
    frames = {}
    for name, rows in {"own": table, "swapped": {0: table[1], 1: table[0]}, "none": None}.items():
        extra = {"weights": save(tmp_path / f"{name}.safetensors", rows)} if rows else {}
        dit_sparse.enable(pipe, "sla", **settings, **extra)
        frames[name] = run(pipe, num_inference_steps=1)
        assert all(cell.sparse for cell in dit_sparse.report(pipe).cells)
    # dense layers need no weights: the file may hold the other layers alone
    path = save(tmp_path / "late.safetensors", {1: table[1]})
    dit_sparse.enable(pipe, "sla", **settings, weights=path, dense_layers=1)
    frames["late"] = run(pipe, num_inference_steps=1)
    names = list(frames)
    for i, a in enumerate(names):
        assert frames[a].isfinite().all()
        assert not any(torch.allclose(frames[a], frames[b]) for b in names[:i]), a


def test_errors_come_before_anything_is_enabled(tmp_path):
    pipe = quiet(tiny_wan())
    path = save(tmp_path / "w.safetensors", tensors(1))
    with pytest.raises(ArgumentError, match="layer 1"):
        dit_sparse.enable(pipe, "sla", weights=path)
    assert not hasattr(pipe.transformer, "_diffusers_hook")


def test_two_transformers_have_two_files(tmp_path):
    save(tmp_path / "transformer.safetensors", tensors(seed=1))
    save(tmp_path / "transformer_2.safetensors", tensors(seed=2))
    both = {"transformer": 2, "transformer_2": 2}
    method = dit_sparse.get("sla", weights=str(tmp_path / "{part}.safetensors"))
    check_weights(method, both)
    first, second = (layer_weights(method, 0, CPU, part)["proj_l.bias"] for part in both)
    assert not torch.equal(first, second)
    single = dit_sparse.get("sla", weights=str(tmp_path / "transformer.safetensors"))
    with pytest.raises(ArgumentError, match=r"\{part\}"):
        check_weights(single, both)


def bad_files(folder):
    """(path, words of the message) of files that cannot serve."""
    one = tensors(1)
    pickled = folder / "w.pt"
    torch.save(one[0], pickled)
    cut = folder / "cut.safetensors"
    save(cut, one)
    cut.write_bytes(cut.read_bytes()[:-8])
    long = folder / "long.safetensors"
    long.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    return {
        "missing": (str(folder / "none.safetensors"), ["no file"]),
        "folder": (str(folder), ["no file"]),
        "pickle": (str(pickled), ["no valid safetensors", "convert"]),
        "cut": (str(cut), ["no valid safetensors"]),
        "header": (str(long), ["no valid safetensors"]),
        "names": (save(folder / "n.safetensors", {}, a=torch.zeros(1)), ["no tensor", "proj_l"]),
        "layer": (save(folder / "l.safetensors", {4: one[0]}), ["layer 0", "layers 4"]),
        "shape": (
            save(folder / "s.safetensors", tensors(1, dim=8)),
            ["proj_l.weight", "[8, 8]", "[16, 16]"],
        ),
        "weight": (
            save(folder / "b.safetensors", {0: {"proj_l.bias": torch.zeros(DIM)}}),
            ["no 'proj_l.weight'", "proj_l.bias"],
        ),
        "kind": (
            save(folder / "i.safetensors", {0: {"proj_l.weight": torch.zeros(16, 16).int()}}),
            ["int32"],
        ),
        "twice": (
            save(folder / "t.safetensors", one, **{"blocks.0.attn2.proj_l.bias": torch.zeros(16)}),
            ["0.proj_l.bias", "attn2", "keep one"],
        ),
    }


def test_bad_files_say_why(tmp_path):
    q, k, v = draw()
    for case, (path, words) in bad_files(tmp_path).items():
        with pytest.raises(ArgumentError) as caught:
            dit_sparse.attention(q, k, v, "sla", weights=path)
        message = str(caught.value)
        assert "\n" not in message and "weights" in message, case
        assert all(word in message for word in words), (case, message)


def test_a_huge_tensor_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("dit_sparse.weights.LARGEST", 255)
    method = dit_sparse.get("sla", weights=save(tmp_path / "h.safetensors", tensors(1)))
    with pytest.raises(ArgumentError, match=r"\[16, 16\].* at most 255"):
        layer_weights(method, 0, CPU)


@pytest.mark.parametrize("path", [None, 3, ("a",)])
def test_weights_is_a_path(path):
    with pytest.raises(ArgumentError, match=re.escape(f"weights={path!r}")):
        dit_sparse.get("sla", weights=path)


def test_profiles_keep_weights():
    profile = Profile("m", "sla", {"weights": "~/models/{part} 1.safetensors", "keep": 0.1})
    again = Profile.from_toml(profile.to_toml())
    assert again == profile and again.build() == profile.build()
    assert again.build().weights == profile.params["weights"]
    assert hash(again.build()) != hash(profile.build(weights=""))


@pytest.mark.parametrize("path", ["w.safetensors", "/a/b-1/{part}.st", "./w", "~/w.st", r"C:\w\a"])
def test_the_command_takes_a_path(path):
    assert parse_setting(f"weights={path}") == ("weights", path)
