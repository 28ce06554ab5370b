"""Check and time the kernels on a CUDA machine: `python tests/measure/check_kernels.py --out
result.json`.

Correctness at real sizes against float64 on sampled query rows, speed at the shapes of
SHAPES with dense baselines of the same run, a bounded sweep of tiles, and the one-pass
tools in GB/s. About two minutes with compilation. `--tiny` runs the same code at toy sizes without
timing (with TRITON_INTERPRET=1 also on a CPU).
"""

import argparse
import json
import sys
import time
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# the kernels need torch and triton only: run on a machine that has nothing else of the package's
# dependencies
if "dit_sparse" not in sys.modules:
    sys.modules["dit_sparse"] = types.ModuleType("dit_sparse")
    sys.modules["dit_sparse"].__path__ = [str(Path(__file__).resolve().parents[2])]

from dit_sparse.kernels import block_sparse, reference
from dit_sparse.kernels._tune import Config
from dit_sparse.kernels.attention import Columns, Cut, block_sparse_attention
from dit_sparse.kernels.lists import pack_lists
from dit_sparse.kernels.permute import permute_tokens
from dit_sparse.kernels.pool import block_moments, pool_blocks

SHAPES = {"A": (12, 32768, 128), "B": (6, 118784, 128), "C": (48, 17664, 64)}
DENSITIES = (0.5, 0.25, 0.1, 0.05)
SWEEP = {
    "A": [
        Config(128, 64, 4, 3, 32),
        Config(128, 64, 4, 2, 32),
        Config(128, 64, 4, 4, 32),
        Config(128, 128, 8, 2, 32),
        Config(128, 64, 8, 3, 32),
        Config(64, 64, 4, 3, 64),
    ],
    "C": [
        Config(64, 64, 4, 3, 64),
        Config(64, 64, 4, 4, 64),
        Config(64, 64, 4, 2, 64),
        Config(128, 64, 4, 3, 64),
        Config(128, 128, 8, 3, 64),
        Config(64, 128, 4, 3, 64),
    ],
}
# (name, dtype, heads, kv heads, Sq, Skv, D, q block, kv block, keep, extras)
ROWS = [
    ("A-like", "bfloat16", 4, 4, 8192, 8192, 128, 128, 128, 0.1, {}),
    ("ragged", "bfloat16", 4, 4, 8000, 8100, 128, 128, 128, 0.2, {"strided": True}),
    ("block 64", "float16", 4, 4, 8192, 8192, 64, 64, 64, 0.1, {}),
    (
        "columns tail",
        "bfloat16",
        4,
        4,
        8192,
        8192,
        128,
        64,
        64,
        0.1,
        {"columns": 128, "tail": True},
    ),
    (
        "columns rescale",
        "bfloat16",
        4,
        4,
        4096,
        4096,
        64,
        64,
        64,
        0.1,
        {"columns": 64, "tail": True, "gain": 6.0},
    ),
    ("causal grouped", "bfloat16", 8, 2, 4000, 8100, 128, 128, 128, 0.5, {"causal": True}),
    ("variable", "bfloat16", 2, 2, 6000, 6000, 128, "cut", "cut", 0.2, {}),
    ("d 72", "bfloat16", 2, 2, 4096, 4096, 72, 128, 128, 0.3, {}),
    ("d 96 pointers", "float16", 2, 2, 4096, 4096, 96, 128, 64, 0.3, {"tma": False}),
    ("d 256", "bfloat16", 2, 2, 4096, 4096, 256, 128, 128, 0.3, {}),
    ("float32 d 128", "float32", 2, 2, 4096, 4096, 128, 128, 128, 0.2, {"columns": 40}),
    ("float32 d 64", "float32", 2, 2, 4096, 4096, 64, 64, 64, 0.2, {}),
]


def random_lists(heads, rows, blocks, keep, device):
    """Return one random ascending list of the same length per (head, query block)."""
    kept = max(1, round(keep * blocks))
    index = (
        torch.rand(1, heads, rows, blocks, device=device)
        .topk(kept, -1)
        .indices.sort(-1)
        .values.int()
    )
    return torch.full((1, heads, rows), kept, device=device, dtype=torch.int32), index


def cut_of(kind, tokens, heads, device):
    """Return a uniform Cut, or for "cut" random clusters with some empty ones."""
    if kind != "cut":
        return Cut(kind)
    n = max(2, tokens // 90)
    inner = torch.randint(0, tokens + 1, (1, heads, n - 1), device=device).sort(-1).values
    offsets = F.pad(F.pad(inner, (1, 0)), (0, 1), value=tokens).int()
    return Cut(int((offsets[..., 1:] - offsets[..., :-1]).max()), offsets)


def check_row(row, shrink, device):
    """Return (name, worst ratio of the kernel's error to its bound) over out and lse of sampled
    query blocks."""
    name, dtype, heads, kv_heads, s_q, s_kv, d, q_size, kv_size, keep, extra = row
    dtype, s_q, s_kv = getattr(torch, dtype), s_q // shrink, s_kv // shrink
    gain = extra.get("gain", 1.0)

    def draw(h, s, scale=1.0):
        if extra.get("strided"):
            return (torch.randn(1, s, h, d, device=device) * scale).to(dtype).transpose(1, 2)
        return (torch.randn(1, h, s, d, device=device) * scale).to(dtype)

    q, k, v = draw(heads, s_q, gain), draw(kv_heads, s_kv), draw(kv_heads, s_kv)
    q_cut, kv_cut = cut_of(q_size, s_q, heads, device), cut_of(kv_size, s_kv, kv_heads, device)
    rows, blocks = q_cut.count(s_q), kv_cut.count(s_kv)
    count, index = random_lists(heads, rows, blocks, keep, device)
    count[:, 0, 0] = 0
    options = {"causal": extra.get("causal", False)}
    c = extra.get("columns", 0)
    if c:
        shown = torch.rand(1, heads, rows, c, device=device) < 0.9
        bias = torch.rand(1, heads, c, device=device) * 4
        options["columns"] = Columns(draw(heads, c, gain), draw(heads, c), bias, shown)
    if extra.get("tail"):
        options["tail"] = torch.randn(1, heads, d, d, device=device) * 0.1
    cuts = {"q_blocks": q_cut, "kv_blocks": kv_cut}
    if extra.get("tma") is False:
        out, lse = block_sparse.block_sparse_attention(
            q, k, v, count, index, **cuts, **options, tma=False
        )
    else:
        out, lse = block_sparse_attention(q, k, v, count, index, **cuts, **options, impl="triton")

    def oracle(first, last, math):
        """Return the reference on query rows [first, last) as a sequence of its own."""
        part = dict(options)
        # every sampled query becomes a block of its own with a copy of its block's list
        block = reference.token_blocks(q_cut, s_q, 1, heads, device)[:, :, first:last]
        sub_count = count.gather(2, block)
        sub_index = index.gather(2, block[..., None].expand(-1, -1, -1, index.shape[-1]))
        kk, vv = k, v
        if part["causal"]:
            # row i sees keys up to i + Skv - Sq: drop the keys behind the last row, so that the
            # offset stays right
            stop = last + s_kv - s_q
            kk, vv = k[:, :, :stop], v[:, :, :stop]
            listed = torch.arange(sub_index.shape[-1], device=device) < sub_count[..., None]
            sub_count = (listed & (sub_index * kv_cut.size < stop)).sum(-1).int()
            sub_index = sub_index[..., : kv_cut.count(stop)]
        if "columns" in part:
            o = part["columns"]
            at = block[..., None].expand(-1, -1, -1, c)
            part["columns"] = Columns(o.k, o.v, o.bias, o.mask.gather(2, at))
        lists = (sub_count, sub_index)
        return reference.block_sparse_attention(
            q[:, :, first:last],
            kk,
            vv,
            *lists,
            q_blocks=1,
            kv_blocks=kv_cut,
            **part,
            math_dtype=math,
        )

    worst = 0.0
    for first in {0, max(0, s_q // 2 - 32), max(0, s_q - 64)}:
        last = min(s_q, first + 64)
        exact, eager = oracle(first, last, torch.float64), oracle(first, last, dtype)
        for got, near, true in (
            (out[:, :, first:last], eager[0], exact[0]),
            (lse[:, :, first:last], eager[1], exact[1]),
        ):
            if not torch.equal(got.isinf(), true.isinf()) or bool(got.isnan().any()):
                return name, float("inf")
            finite = ~true.isinf()
            got, near, true = (t[finite].double() for t in (got, near, true))
            if true.numel():
                band = 4 * torch.finfo(dtype).eps * true.abs().max().clamp(min=1)
                worst = max(
                    worst, float((got - true).abs().max() / (2 * (near - true).abs().max() + band))
                )
    return name, round(worst, 3)


def median_ms(call, tiny, rep=60):
    """Return the median time of call in ms (L2 flushed between launches)."""
    if tiny:
        call()
        return 1.0
    from triton.testing import do_bench

    return do_bench(call, warmup=15, rep=rep, return_mode="median")


def attempt(call, *args):
    """Return call(*args), or the first line of its error as text."""
    try:
        return call(*args)
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        return f"error: {text.splitlines()[0][:70]}"


def time_dense(shape, backend, tiny, device):
    """Return useful TFLOP/s of dense SDPA with one backend."""
    h, s, d = shape
    q, k, v = (torch.randn(1, h, s, d, device=device, dtype=torch.bfloat16) for _ in range(3))
    with sdpa_kernel([backend]):
        ms = median_ms(lambda: F.scaled_dot_product_attention(q, k, v), tiny, 40)
    return round(4 * h * s * s * d / ms / 1e9, 1)


def time_sparse(shape, size, keep, tiny, device, config=None, extras="", short=0):
    """Return useful TFLOP/s (kept blocks only) of the Triton kernel."""
    h, s, d = shape
    s -= short
    q, k, v = (torch.randn(1, h, s, d, device=device, dtype=torch.bfloat16) for _ in range(3))
    n = -(-s // size)
    lists = random_lists(h, n, n, keep, device)
    options = {}
    if extras:
        c = (torch.randn(1, h, n, d, device=device, dtype=torch.bfloat16) for _ in range(2))
        mask = torch.ones(1, h, n, n, device=device, dtype=torch.bool).scatter(
            -1, lists[1].long(), False
        )
        options["columns"] = Columns(*c, torch.full((1, h, n), 4.0, device=device), mask)
        if extras == "tail":
            options["tail"] = torch.randn(1, h, d, d, device=device, dtype=torch.bfloat16)
    run = block_sparse.block_sparse_attention
    ms = median_ms(
        lambda: run(q, k, v, *lists, q_blocks=size, kv_blocks=size, config=config, **options), tiny
    )
    kept = int(lists[0][0, 0, 0]) / n
    return round(4 * h * s * s * d * kept / ms / 1e9, 1)


def time_passes(shape, tiny, device):
    """Return GB/s (bytes read and written once) and ms of the one-pass tools."""
    h, s, d = shape
    x, v = (torch.randn(1, h, s, d, device=device, dtype=torch.bfloat16) for _ in range(2))
    order = torch.randperm(s, device=device).view(1, 1, s).int()
    # the order of a video in 8 x 16 patches of a 32 x 64 frame, a real arrangement
    tiles = (
        torch.arange(s // 2048 * 2048, device=device)
        .view(-1, 4, 8, 4, 16)
        .transpose(2, 3)
        .reshape(-1)
    )
    tiles = torch.cat((tiles, torch.arange(len(tiles), s, device=device))).view(1, 1, s).int()
    chosen = torch.rand(1, h, s // 128, s // 128, device=device) < 0.1
    size = x.numel() * 2
    calls = {
        "pool 128": (size, lambda: pool_blocks(x, 128, impl="triton")),
        "pool 64": (size, lambda: pool_blocks(x, 64, impl="triton")),
        "permute tiles": (2 * size, lambda: permute_tokens(x, tiles, impl="triton")),
        "permute random": (2 * size, lambda: permute_tokens(x, order, impl="triton")),
        "permute + means": (2 * size, lambda: permute_tokens(x, tiles, blocks=128, impl="triton")),
        "restore": (2 * size, lambda: permute_tokens(x, tiles, inverse=True, impl="triton")),
        "moments 64": (2 * size, lambda: block_moments(x, v, 64, impl="triton")),
        "pack lists": (chosen.numel() * 5, lambda: pack_lists(chosen, impl="triton")),
    }
    times = {name: attempt(median_ms, call, tiny, 20) for name, (_, call) in calls.items()}
    return {
        n: t if isinstance(t, str) else (round(calls[n][0] / t / 1e6), round(t, 4))
        for n, t in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="check_kernels.json")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, no timing")
    parser.add_argument("--parts", default="check,time,sweep,passes")
    parser.add_argument(
        "--seconds", type=float, default=110, help="start no further measurement after this time"
    )
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    begin, tiny = time.monotonic(), args.tiny
    shapes = {n: (1, 256, d) for n, (_, _, d) in SHAPES.items()} if tiny else SHAPES
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    result = {
        "device": name,
        "torch": torch.__version__,
        "check": {},
        "dense": {},
        "sparse": {},
        "sweep": {},
    }
    # main figures first, so that a slow compiler costs only the tail of the sweep
    jobs = []
    if "check" in args.parts:
        jobs += [
            ("check", row[0], lambda row=row: check_row(row, 32 if tiny else 1, device)[1])
            for row in ROWS
        ]
    if "time" in args.parts:
        backends = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
        for s in shapes:
            jobs += [
                (
                    "sparse",
                    f"{s} block {b} keep {p}",
                    lambda s=s, b=b, p=p: time_sparse(shapes[s], b, p, tiny, device),
                )
                for b in (128, 64)
                for p in DENSITIES
            ]
            jobs += [
                ("dense", f"{s} {n}", lambda s=s, b=b: time_dense(shapes[s], b, tiny, device))
                for n, b in backends.items()
            ]
        for s in ("A", "C"):
            for label, kind in (("columns", "columns"), ("columns+tail", "tail")):
                jobs += [
                    (
                        "sparse",
                        f"{s} block {b} keep 0.1 {label}",
                        lambda s=s, b=b, k=kind: time_sparse(
                            shapes[s], b, 0.1, tiny, device, extras=k
                        ),
                    )
                    for b in (128, 64)
                ]
            jobs.append(
                (
                    "sparse",
                    f"{s} block 128 keep 0.1 ragged",
                    lambda s=s: time_sparse(shapes[s], 128, 0.1, tiny, device, short=60),
                )
            )
    if "passes" in args.parts:
        jobs += [("passes", s, lambda s=s: time_passes(shapes[s], tiny, device)) for s in ("A",)]
    if "sweep" in args.parts:
        for s, configs in SWEEP.items():
            for c in configs:
                label = f"{s} {c.block_m}x{c.block_n} w{c.num_warps} s{c.num_stages}"
                jobs.append(
                    (
                        "sweep",
                        label,
                        lambda s=s, c=c: [
                            time_sparse(shapes[s], 128, p, tiny, device, c) for p in (0.5, 0.1)
                        ],
                    )
                )
    for part, label, call in jobs:
        if time.monotonic() - begin > args.seconds:
            result.setdefault("skipped", []).append(f"{part} {label}")
            continue
        result.setdefault(part, {})[label] = attempt(call)
        print(f"{time.monotonic() - begin:6.1f}s {part} {label}: {result[part][label]}", flush=True)
        Path(args.out).write_text(json.dumps(result, indent=1))
    bad = {k: v for k, v in result["check"].items() if isinstance(v, str) or v > 1}
    print(
        f"\n{name} torch {result['torch']} {time.monotonic() - begin:.0f} s; "
        "TFLOP/s on kept work; errors as a share of the bound"
    )
    print("correctness:", "all within the bound" if not bad else f"FAILED {bad}")
    for s in shapes if "time" in args.parts else ():
        dense = {k.split()[1]: v for k, v in result["dense"].items() if k.startswith(s)}
        print(f"{s} {shapes[s]} dense {dense}")
        for b in (128, 64):
            line = [result["sparse"].get(f"{s} block {b} keep {p}", "-") for p in DENSITIES]
            print(f"{s} block {b:3} at {DENSITIES}: {' / '.join(map(str, line))}")
    special = {
        k: v
        for k, v in result["sparse"].items()
        if not k.endswith(tuple(str(p) for p in DENSITIES))
    }
    for part, values in (
        ("sparse", special),
        ("sweep", result["sweep"]),
        ("GB/s, ms", result.get("passes", {}).get("A")),
    ):
        for label, value in values.items() if isinstance(values, dict) else ():
            print(f"{part} {label}: {value}")
    print("skipped:", result.get("skipped", "nothing"))
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
