"""Check and time the kernels on a CUDA machine: `python tests/measure/check_kernels.py`.

Correctness at real sizes against float64 on sampled query rows, speed at the shapes of
performance.md with dense baselines of the same run, a bounded sweep of tiles, and the one-pass
tools in GB/s. About four minutes with compilation. `--tiny` runs the same code at toy sizes without
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

# the kernels need torch and triton only: run on a machine that has nothing else of the package's
# dependencies
if "dit_sparse" not in sys.modules:
    sys.modules["dit_sparse"] = types.ModuleType("dit_sparse")
    sys.modules["dit_sparse"].__path__ = [str(Path(__file__).resolve().parents[2])]

from check_passes import check_passes
from kernel_times import DENSITIES, SHAPES, cluster_cut, random_lists, timing_jobs

from dit_sparse.kernels import block_sparse, reference
from dit_sparse.kernels.attention import Columns, Cut, block_sparse_attention

# (name, dtype, heads, kv heads, Sq, Skv, D, q block, kv block, keep, extras)
# fmt: off
ROWS = [
    ("A-like", "bfloat16", 4, 4, 8192, 8192, 128, 128, 128, 0.1, {}),
    ("ragged", "bfloat16", 4, 4, 8000, 8100, 128, 128, 128, 0.2, {"strided": True}),
    ("block 64", "float16", 4, 4, 8192, 8192, 64, 64, 64, 0.1, {}),
    ("columns tail", "bfloat16", 4, 4, 8192, 8192, 128, 64, 64, 0.1, {"columns": 128, "tail":
     True}),
    ("columns rescale", "bfloat16", 4, 4, 4096, 4096, 64, 64, 64, 0.1, {"columns": 64, "tail":
     True, "gain": 6.0}),
    ("causal grouped", "bfloat16", 8, 2, 4000, 8100, 128, 128, 128, 0.5, {"causal": True}),
    ("variable", "bfloat16", 2, 2, 6000, 6000, 128, "cut", "cut", 0.2, {}),
    ("unequal tiles", "bfloat16", 2, 2, 6000, 6000, 128, "boxes", "boxes", 0.2, {"columns": 90,
     "tail": True, "strided": True}),
    ("unequal d 64", "bfloat16", 2, 2, 6000, 6000, 64, 128, "boxes", 0.2, {}),
    ("ragged columns", "bfloat16", 4, 2, 8100, 8100, 128, 128, 128, 0.1, {"columns": 64, "tail":
     True, "strided": True}),
    ("d 72", "bfloat16", 2, 2, 4096, 4096, 72, 128, 128, 0.3, {}),
    ("d 96 pointers", "float16", 2, 2, 4096, 4096, 96, 128, 64, 0.3, {"tma": False}),
    ("d 256", "bfloat16", 2, 2, 4096, 4096, 256, 128, 128, 0.3, {}),
    ("float32 d 128", "float32", 2, 2, 4096, 4096, 128, 128, 128, 0.2, {"columns": 40}),
    ("float32 d 64", "float32", 2, 2, 4096, 4096, 64, 64, 64, 0.2, {}),
    ("listed 16", "bfloat16", 4, 4, 8192, 8192, 128, 128, 128, 0.05, {"columns": 7168, "group":
     16}),
    ("listed 7 tail grouped", "bfloat16", 4, 2, 8100, 8100, 128, 128, 128, 0.05, {"columns": 1001,
     "group": 7, "tail": True, "strided": True}),
    ("listed 1 block 64", "float16", 4, 4, 8192, 8192, 64, 64, 64, 0.05, {"columns": 900,
     "group": 1, "gain": 4.0}),
    ("choice", "bfloat16", 4, 4, 8192, 8192, 128, 128, 114, 0.3, {"choice": True}),
    ("choice causal d 64", "bfloat16", 4, 2, 8100, 8192, 64, 128, 300, 0.4, {"choice": True,
     "causal": True}),
    ("choice variable columns", "bfloat16", 2, 2, 6000, 6000, 128, 128, "cut", 0.3, {"choice":
     True, "columns": 90, "tail": True}),
    ("clusters", "bfloat16", 4, 4, 8192, 8192, 128, "loose 82", "loose 16", 0.1, {}),
    ("clusters d 64", "bfloat16", 4, 4, 8100, 8192, 64, "loose 250", "loose 125", 0.1, {"columns":
     250, "tail": True, "strided": True}),
    ("clusters listed", "bfloat16", 2, 2, 8192, 8192, 128, "loose 300", "loose 90", 0.1,
     {"columns": 512, "group": 8}),
]
# fmt: on


def cut_of(kind, tokens, heads, device):
    """Return a uniform Cut, for "cut" random clusters, some empty, for "boxes" 50 to 64, for
    "loose n" clusters of n tokens on average under a bound that says nothing."""
    if isinstance(kind, int):
        return Cut(kind)
    if kind == "boxes":
        edges = torch.linspace(0, tokens, tokens // 56 + 1, device=device).round()
        edges[1:-1] += torch.randint(-3, 4, (len(edges) - 2,), device=device)
        return Cut(64, edges.int()[None, None])
    if kind.startswith("loose"):
        return cluster_cut(tokens, max(2, tokens // int(kind.split()[1])), heads, device)
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
    group = extra.get("group", 0)
    if group:
        c = max(group + 1, c // shrink)
        bias = torch.rand(1, heads, c, device=device) * 2
        lists = random_lists(heads, rows, -(-c // group), 0.1, device)
        lists[0][:, 0, 1] = 0
        options["columns"] = Columns(
            draw(heads, c, gain), draw(heads, c), bias, None, *lists, group
        )
    elif c:
        shown = torch.rand(1, heads, rows, c, device=device) < 0.9
        bias = torch.rand(1, heads, c, device=device) * 4
        options["columns"] = Columns(draw(heads, c, gain), draw(heads, c), bias, shown)
    if extra.get("tail"):
        options["tail"] = torch.randn(1, heads, d, d, device=device) * 0.1
    if extra.get("choice"):
        options["row_mask"] = torch.rand(1, heads, s_q, blocks, device=device) < 0.4
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
            if "row_mask" in part:
                part["row_mask"] = part["row_mask"][..., : kv_cut.count(stop)]
        if "row_mask" in part:
            part["row_mask"] = part["row_mask"][:, :, first:last]
        if "columns" in part:
            o = part["columns"]
            wide = (o.index if group else o.mask).shape[-1]
            at = block[..., None].expand(-1, -1, -1, wide)
            if group:
                own = (None, o.count.gather(2, block), o.index.gather(2, at), group)
            else:
                own = (o.mask.gather(2, at),)
            part["columns"] = Columns(o.k, o.v, o.bias, *own)
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


def attempt(call, *args):
    """Return call(*args), or the first line of its error as text."""
    try:
        return call(*args)
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        return f"error: {text.splitlines()[0][:70]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="check_kernels.json")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, no timing")
    parser.add_argument("--parts", default="check,time,lists,sweep,passes")
    parser.add_argument(
        "--seconds", type=float, default=240, help="start no further measurement after this time"
    )
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    begin, tiny = time.monotonic(), args.tiny
    shapes = {n: (1, 256, d) for n, (_, _, d) in SHAPES.items()} if tiny else SHAPES
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    result = {"device": name, "torch": torch.__version__}
    result |= {part: {} for part in ("check", "dense", "sparse", "sweep")}
    # main figures first, so that a slow compiler costs only the tail of the sweep
    jobs = []
    if "check" in args.parts:
        jobs += [
            ("check", row[0], lambda row=row: check_row(row, 32 if tiny else 1, device)[1])
            for row in ROWS
        ]
        jobs.append(("check", "passes", lambda: check_passes(tiny, device)))
    jobs += timing_jobs(shapes, args.parts, tiny, device)
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
        ("lists", result.get("lists", {})),
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
