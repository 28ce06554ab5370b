"""Attention over processes, by Ulysses or by heads: two make together what one makes alone."""

import os
import socket
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers as host
from safetensors.torch import save_file

import dit_sparse
from dit_sparse.core import Heads
from dit_sparse.integrations import transformers as text
from dit_sparse.integrations.parallel import Ulysses, split
from dit_sparse.integrations.processes import meet
from dit_sparse.integrations.sequence import Sequence
from tests.tiny.case import cases
from tests.tiny_text import build

# the letters differ, so that a wrong head shows
METHODS = {
    "draft": {"keep": 0.4, "patch": (3, 2), "dense_steps": 0, "dense_layers": 0},
    "sparse_vdit": {"table": "DSMF", "block": 16, "dense_steps": 0},
}
# the host's own gathering over gloo takes equal shares alone
EVEN = {"hidden_states": lambda x: torch.cat([x, x[:, :, :1]], 2)}
MODELS = {
    "WanTransformer3DModel": ({"num_attention_heads": 4}, EVEN),
    # text and picture are split one by one: the exchanged tokens must be put in order
    "FluxTransformer2DModel-reference": ({"num_attention_heads": 4}, {}),
}


def run(case, model, change):
    """Return the output for two samples, with some of the arguments changed."""
    torch.manual_seed(1)
    given = case.inputs(case.texts)
    given |= {key: make(given[key]) for key, make in change.items()}
    with torch.no_grad():
        return model(**given, return_dict=False)[0]


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def begin(rank, ranks, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)


def exchange(rank, ranks, port):
    begin(rank, ranks, port)
    torch.manual_seed(0)
    for heads, of in ((4, Sequence(2, 3, 4, 6, 2)), (3, Sequence(1, 5, 7, 0, 3))):
        whole = torch.randn(2, of.tokens, heads, 5)
        pieces = whole.split([of.before, of.box, of.after], 1)
        mine = torch.cat([p.tensor_split(ranks, 1)[rank] for p in pieces], 1)
        ulysses = Ulysses(rank, ranks)
        first = ulysses.heads(heads)
        share = split(heads, ranks)[rank]
        there = ulysses.gather(mine, of)
        assert torch.equal(there, whole[:, :, first.first : first.first + share])
        assert torch.equal(ulysses.scatter(there, of, mine.shape[1], heads), mine)
        mask = torch.rand(2, 1, 1, of.tokens) > 0.5
        cut = [p.tensor_split(ranks, 3)[rank] for p in mask.split([of.before, of.box, of.after], 3)]
        assert torch.equal(ulysses.gather_mask(torch.cat(cut, 3), of), mask)
    meet()
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_exchange(ranks):
    mp.spawn(exchange, (ranks, free_port()), nprocs=ranks)


def test_heads_of_processes():
    assert split(7, 3) == [3, 2, 2]
    assert [Ulysses(r, 3).heads(7) for r in range(3)] == [Heads(0, 7), Heads(3, 7), Heads(5, 7)]


def forward(rank, ranks, port, name, folder):
    begin(rank, ranks, port)
    from diffusers import ContextParallelConfig

    case, (config, change) = next(c for c in cases() if str(c) == name), MODELS[name]
    # the host asks for an accelerator even when the processes talk through gloo
    cpu = mock.patch.object(torch._C, "_get_accelerator", lambda: torch.device("cpu"))
    with cpu, mock.patch.object(torch.accelerator, "device_count", lambda: ranks):
        for method, params in METHODS.items():
            model = case.build(**config)
            model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=ranks))
            dit_sparse.enable(model, method, **params)
            out = run(case, model, change)
            report = dit_sparse.report(model)
            assert report.sparse_calls == report.calls > 0, report.reasons
            if not rank:
                torch.save(out, Path(folder) / f"{method}.pt")
    meet()
    dist.destroy_process_group()


@pytest.mark.parametrize("name", list(MODELS))
def test_two_processes_equal_one(name, tmp_path):
    mp.spawn(forward, (2, free_port(), name, str(tmp_path)), nprocs=2)
    case, (config, change) = next(c for c in cases() if str(c) == name), MODELS[name]
    for method, params in METHODS.items():
        model = case.build(**config)
        dit_sparse.enable(model, method, **params)
        found = torch.load(tmp_path / f"{method}.pt")
        torch.testing.assert_close(found, run(case, model, change), rtol=1e-4, atol=1e-5)


# per-head parameters that differ, so that a wrong head shows; weights: of `save` below
TABLES = {
    "minference": {"heads": (("A 16 48", "V 20 30", "B 3", "V 60 10"),) * 2, "last": 16,
        "block": 16, "sink": 3, "local": 8},
    "xattention": {"heads": ((0.3, 0.5, 0.7, 0.9),) * 2, "block": 16},
    "moba": {"topk": 2, "block": 16, "weights": "learned.safetensors"},
    "seer": {"threshold": 0.15, "block": 16, "weights": "learned.safetensors"},
}  # fmt: skip


def save(folder):
    """Write learned tensors of two layers, of 4 heads and 2 key heads of 8 numbers."""
    shapes = {"key_conv.weight": (16, 3), "gate_q.weight": (4, 8, 6), "gate_k.weight": (2, 24, 6)}
    named = {f"layers.{n}.{name}": shape for n in (0, 1) for name, shape in shapes.items()}
    save_file({n: torch.randn(s) for n, s in named.items()}, folder / "learned.safetensors")


def logits(model, method, params, folder):
    """Return what a language model says of a text, with a method."""
    given = {n: str(Path(folder) / v) if n == "weights" else v for n, v in params.items()}
    text.enable(model, method, **given)
    with torch.no_grad():
        out = model(torch.arange(190)[None] * 7 % 60 + 1).logits
    assert text.report(model).sparse_calls == 2
    return out


def by_heads(rank, ranks, port, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    begin(rank, ranks, port)
    model = host.LlamaForCausalLM.from_pretrained(folder, tp_plan="auto").eval()
    # two of the four heads of 8 numbers
    assert model.model.layers[0].self_attn.q_proj(torch.zeros(1, 1, 32)).shape[-1] == 16
    for method, params in TABLES.items():
        out = logits(model, method, params, folder)
        if not rank:
            torch.save(out, Path(folder) / f"{method}.pt")
    meet()
    dist.destroy_process_group()


def test_tables_of_a_language_model_in_parts(tmp_path):
    """Under transformers' tensor parallelism a process finds what is of its own heads."""
    build("Llama").float().save_pretrained(tmp_path)
    save(tmp_path)
    mp.spawn(by_heads, (2, free_port(), str(tmp_path)), nprocs=2)
    model = host.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    for method, params in TABLES.items():
        found = torch.load(tmp_path / f"{method}.pt")
        alone = logits(model, method, params, tmp_path)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
