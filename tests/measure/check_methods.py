"""Run the conformance suite on a GPU, and time whole methods against dense attention.

    python tests/measure/check_methods.py --out methods.json

Time: median of CUDA events over repeated calls, selection and remainder included, bf16. `kept_ms`
is the attention kernel alone on the same lists, without columns; the stages are timed one by one.
`--tiny` runs the same code at toy sizes on any device without timing.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import dit_sparse
from dit_sparse.arranged import arranged, cut, restored
from dit_sparse.core import QKV, Context
from dit_sparse.kernels.attention import block_sparse_attention
from dit_sparse.kernels.lists import pack_lists
from dit_sparse.testing import PROPERTIES, check_property, relative_error

# name, heads, head dim, grid: Wan2.1-1.3B at 480p; a quarter of HunyuanVideo's heads at 720p
SHAPES = (
    ("A", 12, 128, dit_sparse.Grid(21, 30, 52)),
    ("B", 6, 128, dit_sparse.Grid(33, 45, 80)),
)
RUNS = (
    ("pisa", {"keep": 0.1}),
    ("pisa", {"keep": 0.1, "order": 0, "error_bias": False}),
    ("draft", {"keep": 0.1}),
    ("draft", {"keep": 0.1, "rule": "row"}),
)


def conformance(device: str) -> tuple[list[str], list[str]]:
    """Return what failed and what could not run, by method and property."""
    torch.set_default_device(device)
    failed, skipped = [], []
    for name in dit_sparse.methods():
        for prop in PROPERTIES:
            try:
                check_property(name, prop)
            except ModuleNotFoundError as error:
                # a bare machine: torch and triton, not the package's other dependencies
                skipped.append(f"{name} {prop}: {error}")
            except Exception as error:
                text = (str(error).splitlines() or [""])[0][:200]
                failed.append(f"{name} {prop}: {type(error).__name__}: {text}")
    torch.set_default_device("cpu")
    return failed, skipped


def median(call, tiny: bool, rep: int = 200) -> float:
    """Return milliseconds."""
    call()
    if tiny:
        return 1.0
    from triton.testing import do_bench

    return do_bench(call, warmup=30, rep=rep, return_mode="median")


def stages(x: QKV, grid, method, tiny: bool) -> dict[str, float]:
    """Return the milliseconds of every stage by itself, and of the kept blocks alone."""
    ctx = Context(grid=grid)
    layout = method.arrange(x, ctx)
    moved = arranged(x, layout, ctx)
    score = method.score(x, layout, ctx)
    plan = method.plan(x, ctx)
    full = dict(ctx.cache)
    ready = {"arranged": moved}
    columns, tail = method.compute.remainder(moved, plan, ctx)
    lists = pack_lists(plan.level == 1, plan.capacity)
    cuts = {"q_blocks": cut(layout.q), "kv_blocks": cut(layout.kv)}
    out, _ = block_sparse_attention(*moved, *lists, **cuts, columns=columns, tail=tail)

    def context(cache):
        return Context(grid=grid, cache=dict(cache))

    calls = {
        "layout": lambda: method.arrange(x, ctx),
        "arrange": lambda: arranged(x, layout, context({})),
        "score": lambda: method.score(x, layout, context(ready)),
        "select": lambda: method.select(score, layout, ctx),
        "lists": lambda: pack_lists(plan.level == 1, plan.capacity),
        "remainder": lambda: method.compute.remainder(moved, plan, context(full)),
        "kernel": lambda: block_sparse_attention(
            *moved, *lists, **cuts, columns=columns, tail=tail
        ),
        "kept": lambda: block_sparse_attention(*moved, *lists, **cuts),
        "restore": lambda: restored(out, layout.q, ctx),
    }
    return {name: round(median(call, tiny, 60), 4) for name, call in calls.items()}


def time_run(x: QKV, grid, name: str, params: dict, tiny: bool) -> dict:
    """Return the measurements of one method on one shape."""
    method = dit_sparse.get(name, **params)
    took = median(lambda: dit_sparse.attention(*x, method, grid=grid), tiny)
    parts = stages(x, grid, method, tiny)
    return {
        "method": name,
        **params,
        "density": dit_sparse.plan(*x, method, grid=grid).density().item(),
        "ms": took,
        "over_kept": took / parts["kept"],
        "stages": parts,
    }


def strided(x: QKV, grid, tiny: bool) -> dict:
    """Return how tensors in a model's memory order [B, S, H, D] compare with contiguous ones."""
    views = QKV(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in x))
    run = {"grid": grid, "keep": 0.1}
    error = relative_error(
        dit_sparse.attention(*views, "pisa", **run), dit_sparse.attention(*x, "pisa", **run)
    )
    took = median(lambda: dit_sparse.attention(*views, "pisa", **run), tiny)
    return {"method": "pisa on [B, S, H, D] views", "relative_error": error, "ms": took}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, no timing")
    parser.add_argument("--seconds", type=float, default=90, help="start nothing new after this")
    args = parser.parse_args()
    begin, tiny = time.monotonic(), args.tiny
    warnings.filterwarnings("ignore", category=UserWarning)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "rows": []}

    def record(row):
        result["rows"].append(row)
        print(f"{time.monotonic() - begin:6.1f}s {row}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")

    for shape, heads, dim, grid in SHAPES:
        grid = dit_sparse.Grid(3, 6, 10) if tiny else grid
        x = QKV(*torch.randn(3, 1, heads, grid.tokens, dim, device=device).bfloat16())
        with sdpa_kernel([SDPBackend.MATH if tiny else SDPBackend.CUDNN_ATTENTION]):
            sdpa = torch.nn.functional.scaled_dot_product_attention
            dense = median(lambda: sdpa(*x), tiny)  # noqa: B023
        record({"shape": shape, "tokens": grid.tokens, "method": "dense cudnn", "ms": dense})
        for name, params in RUNS:
            if time.monotonic() - begin < args.seconds:
                row = time_run(x, grid, name, params, tiny)
                record({"shape": shape, "speedup": dense / row["ms"], **row})
        if shape == "A":
            record({"shape": shape, **strided(x, grid, tiny)})
    failed, skipped = conformance(device)
    result |= {"failed": failed, "skipped": skipped}
    print(f"\n{result['device']}, times in ms")
    for row in result["rows"]:
        stages_ = row.get("stages", {})
        flat = {k: v for k, v in row.items() if k != "stages"} | stages_
        print(*(f"{k} {round(v, 3) if isinstance(v, float) else v}" for k, v in flat.items()))
    print(f"conformance: {len(failed)} failed, {len(skipped)} skipped")
    print("\n".join(failed + skipped))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
