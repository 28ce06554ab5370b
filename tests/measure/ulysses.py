"""Ulysses over real GPUs: the same output as one process, and what it costs.

    torchrun --standalone --nproc-per-node 2 tests/measure/ulysses.py --out ulysses.json

Every process checks the exchange of unequal shares, two tiny models against itself alone (those of
tests/test_parallel.py, even and uneven), and one attention layer of Wan2.1-14B at 720 x 1280 x 81
(40 heads of 128, 75,600 tokens, bf16, published settings of `--method`): the whole layer against
heads shared out to the processes, exchange included, medians of `--rounds` calls in ms, the slowest
process counting. `--tiny`: a small layer, in seconds, also on CPUs.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dit_sparse
from dit_sparse.bench.machine import facts
from dit_sparse.core import QKV, Context, Grid
from dit_sparse.integrations.parallel import Ulysses, split
from dit_sparse.integrations.processes import join, leave, meet, share, started
from dit_sparse.integrations.sequence import Sequence
from dit_sparse.profile import find
from tests.test_parallel import EVEN, METHODS
from tests.tiny.case import cases

FULL = Sequence(21, 45, 80), 40, 128
TINY = Sequence(3, 12, 16), 6, 32
MODELS = {"WanTransformer3DModel": (EVEN, {}), "FluxTransformer2DModel-reference": ({},)}


def check_exchange(me, device):
    """Raise unless tokens come back as they went, in shares of any size."""
    torch.manual_seed(0)
    for heads, of in ((4, Sequence(2, 3, 4, 6, 2)), (3, Sequence(1, 5, 7, 0, 3))):
        whole = torch.randn(2, of.tokens, heads, 5).to(device)
        mine = own(whole, of, me)
        there = me.gather(mine, of)
        first = me.heads(heads).first
        assert torch.equal(there, whole[:, :, first : first + split(heads, me.ranks)[me.rank]])
        assert torch.equal(me.scatter(there, of, mine.shape[1], heads), mine)


def own(whole, of, me):
    """Return the tokens of this process of a tensor [B, S, H, D]."""
    pieces = whole.split([of.before, of.box, of.after], 1)
    return torch.cat([p.tensor_split(me.ranks, 1)[me.rank] for p in pieces], 1)


def run(case, model, change, device):
    """Return the output of a tiny model for two samples, some of its arguments changed."""
    torch.manual_seed(1)
    given = case.inputs(case.texts)
    given |= {key: make(given[key]) for key, make in change.items()}
    given = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with torch.no_grad():
        return model.to(device)(**given, return_dict=False)[0]


def check_models(processes, device):
    """Return model and method -> the largest relative error against this process alone."""
    found = {}
    for name, changes in MODELS.items():
        case = next(c for c in cases() if str(c) == name)
        for method, params in METHODS.items():
            for change in changes if device.type == "cuda" else changes[:1]:
                alone = dit_sparse.enable(case.build(num_attention_heads=4), method, **params)
                true = run(case, alone, change, device)
                model = case.build(num_attention_heads=4).to(device)
                share(SimpleNamespace(transformer=model), processes, device)
                dit_sparse.enable(model, method, **params)
                out = run(case, model, change, device)
                report = dit_sparse.report(model)
                assert report.sparse_calls == report.calls > 0, report.reasons
                off = float((out - true).norm() / true.norm())
                assert off < 1e-4, f"{name} {method}: {off}"
                found[f"{name} {method}"] = max(off, found.get(f"{name} {method}", 0.0))
    return found


def slowest(call, rounds, device):
    """Return the median ms of a call that all processes begin together, of the slowest one."""
    times = []
    for _ in range(rounds + 2):
        meet()
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begin))
    ms = torch.tensor(median(times[2:]), device=device)
    dist.all_reduce(ms, dist.ReduceOp.MAX)
    return float(ms)


def layer(me, device, of, heads, dim, name, rounds):
    """Return the times of one layer alone and shared, and the error of the shared one."""
    g = torch.Generator(device).manual_seed(4)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = (1, of.tokens, heads, dim)
    whole = [torch.randn(size, generator=g, device=device, dtype=dtype) for _ in range(3)]
    mine = [own(x, of, me) for x in whole]
    method = dit_sparse.get(name) if name == "dense" else find("wan2.1-14b", name).build()
    grid = Grid(of.frames, of.height, of.width)

    def attend(x, heads):
        ctx = Context(grid, layer=1, step=20, steps=50, heads=heads)
        return method(QKV(*(t.transpose(1, 2) for t in x)), ctx).transpose(1, 2)

    def shared():
        there = [me.gather(x, of) for x in mine]
        return me.scatter(attend(there, me.heads(heads)), of, mine[0].shape[1], heads)

    def exchange():
        there = [me.gather(x, of) for x in mine]
        return me.scatter(there[0], of, mine[0].shape[1], heads)

    true = own(attend(whole, None), of, me)
    off = (shared() - true).float().norm() / true.float().norm()
    dist.all_reduce(off, dist.ReduceOp.MAX)
    assert float(off) < 1e-3, f"{name}: {float(off)}"
    return {
        "error": float(off),
        "one process, ms": slowest(lambda: attend(whole, None), rounds, device),
        "shared, ms": slowest(shared, rounds, device),
        "of that exchange, ms": slowest(exchange, rounds, device),
    }


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("--method", default="dense,pisa", help="comma-separated")
    ask.add_argument("--rounds", type=int, default=20)
    ask.add_argument("--tiny", action="store_true")
    ask.add_argument("--out", type=Path)
    args = ask.parse_args()
    processes = started()
    device = join("cuda" if torch.cuda.is_available() else "cpu")
    me = Ulysses(processes.rank, processes.ranks)
    with torch.no_grad():
        check_exchange(me, device)
        told = {"machine": facts(device), "processes": processes.ranks, "backend":
                dist.get_backend(), "models": check_models(processes, device)}  # fmt: skip
        for name in args.method.split(","):
            told[name] = layer(me, device, *(TINY if args.tiny else FULL), name, args.rounds)
    if processes.first:
        print(json.dumps(told, indent=1))
        if args.out:
            args.out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    meet()
    leave()


if __name__ == "__main__":
    main()
