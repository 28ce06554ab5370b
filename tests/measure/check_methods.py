"""Run the conformance suite on a GPU, and time whole methods against dense attention.

    python tests/measure/check_methods.py --out methods.json
    python tests/measure/check_methods.py --table methods.json

Time: median of CUDA events over replays of a CUDA graph of the call, in bf16, selection and
remainder included, in the warm state (what a method keeps from step to step is there): what the
device needs; `eager` is the same call launched from Python. The stages are timed one by one:
layout (order and cut), move (q, k, v into that order), score, select, and compute, of which
`kernel` is the attention kernel with all its extras and `kept` the same lists without columns and
tail. Capture fails at any wait for the device, and the replay must give what the call gives.
`--tiny` runs the same code at toy sizes on any device without timing.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

import dit_sparse
from dit_sparse.bench.method import STAGES, stage_calls
from dit_sparse.core import QKV, Context
from dit_sparse.testing import PROPERTIES, check_property, relative_error
from dit_sparse.weights import layer_weights

# name, heads, head dim, grid: Wan2.1-1.3B at 480p; a quarter of HunyuanVideo's heads at 720p
SHAPES = (
    ("A", 12, 128, dit_sparse.Grid(21, 30, 52)),
    ("B", 6, 128, dit_sparse.Grid(33, 45, 80)),
)
KEEP, LAYER = 0.1, 2
RUNS = (
    ("psa", {}),
    ("pisa", {}),
    ("pisa", {"order": 0}),
    ("vmoba", {}),
    ("svg", {}),
    ("svg2", {}),
    ("svg_ear", {}),
    ("draft", {}),
    ("sparse_vdit", {}),
    ("rectified", {"neighbours": "within", "p_remain": 0.0}),
    ("sla", {}),
    ("sla", {"variant": "global"}),
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


def median(call, tiny: bool, rep: int = 100) -> float:
    """Return milliseconds."""
    call()
    if tiny:
        return 1.0
    from triton.testing import do_bench

    return do_bench(call, warmup=20, rep=rep, return_mode="median")


def capture(call) -> tuple[torch.cuda.CUDAGraph | None, torch.Tensor | None, str]:
    """Return a call as a CUDA graph with its output, or why it cannot be one."""
    if not torch.cuda.is_available():
        return None, None, "no GPU"
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            out = call()
    except Exception as error:
        torch.cuda.synchronize()
        return None, None, (str(error).splitlines() or [""])[0][:120]
    return graph, out, ""


def replays(call) -> tuple[bool | str, float | None]:
    """Return whether a CUDA graph of a call gives what the call gives (or why there is none), and
    the milliseconds of a replay."""
    graph, out, why_not = capture(call)
    if graph is None or out is None:
        return why_not, None
    truth = call()
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return relative_error(out, truth) < 1e-3, median(graph.replay, False)


def device_ms(call, tiny: bool) -> float:
    """Return the milliseconds of a stage on the device, without the host's share."""
    graph, _, why_not = capture(call)
    return median(call if why_not else graph.replay, tiny, 40)


@contextmanager
def projections(dim: int) -> Iterator[str]:
    """Give the path of a weights file as a fine-tuned SLA model has it, random."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "projections.safetensors"
        names = {"proj_l.weight": (dim, dim), "proj_l.bias": (dim,)}
        save_file({f"{LAYER}.{n}": torch.randn(s) / dim for n, s in names.items()}, path)
        yield str(path)


def stages(x: QKV, method, call: Context, tiny: bool) -> dict[str, float]:
    """Return the milliseconds of every stage by itself; `call` is the context of a warm call."""
    calls, _ = stage_calls(x, method, call)
    return {name: round(device_ms(calls[name], tiny), 4) for name in STAGES}


def time_run(x: QKV, grid, name: str, params: dict, tiny: bool) -> dict:
    """Return the measurements of one method on one shape."""
    with projections(x.q.shape[-1]) as path:
        learned = {"weights": path} if name == "sla" else {}
        method = dit_sparse.get(name, keep=KEEP, **params, **learned)
        weights = layer_weights(method, LAYER, x.q.device)
    # one state for all calls: what a method keeps from step to step is there
    ctx = Context(grid=grid, layer=LAYER, step=20, steps=50, weights=weights)
    method(x, ctx)
    plan = method.plan(x, ctx)
    eager = median(lambda: method(x, ctx), tiny)
    parts = stages(x, method, ctx, tiny)
    same, took = replays(lambda: method(x, replace(ctx, state=dict(ctx.state))))
    took = eager if took is None else took
    return {
        "method": name,
        **params,
        "density": plan.density().item(),
        "ms": took,
        "eager": eager,
        "over_kept": took / parts["kept"],
        "graph": same,
        "stages": parts,
    }


def table(result: dict) -> str:
    """Return the Markdown of a result."""
    head = ("shape", "method", "density", "ms", "eager", "against dense", "over kept", *STAGES)
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in result["rows"]:
        if "stages" in row:
            extra = {"order": " order 0", "variant": " global"}
            name = row["method"] + "".join(text for key, text in extra.items() if key in row)
            cells = (
                row["shape"], name, f"{row['density']:.3f}", f"{row['ms']:.2f}",
                f"{row['eager']:.2f}", f"{row['speedup']:.2f}x", f"{row['over_kept']:.2f}x",
                *(f"{row['stages'][s]:.2f}" for s in STAGES),
            )  # fmt: skip
        else:
            cells = (row["shape"], row["method"], "1", f"{row['ms']:.2f}", "", "1x", *[""] * 8)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a result and stop")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, no timing")
    parser.add_argument("--seconds", type=float, default=200, help="start nothing new after this")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--no-conformance", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return 0
    begin, tiny = time.monotonic(), args.tiny
    warnings.filterwarnings("ignore", category=UserWarning)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    result = {"device": name, "torch": torch.__version__, "rows": [], "failed": []}

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
            wanted = args.methods is None or name in args.methods
            if not wanted or time.monotonic() - begin > args.seconds:
                continue
            try:
                row = time_run(x, grid, name, params, tiny)
            except Exception as error:
                text = (str(error).splitlines() or [""])[0][:300]
                result["failed"].append(f"{shape} {name}: {type(error).__name__}: {text}")
                print(result["failed"][-1], flush=True)
                continue
            record({"shape": shape, "speedup": dense / row["ms"], **row})
    if not args.no_conformance:
        failed, result["skipped"] = conformance(device)
        result["failed"] += failed
    print(f"\n{result['device']}, torch {torch.__version__}, times in ms\n{table(result)}")
    print("graphs:", {r["method"]: r["graph"] for r in result["rows"] if "graph" in r})
    print(f"{len(result['failed'])} failed, {len(result.get('skipped', []))} skipped")
    print("\n".join(result["failed"] + result.get("skipped", [])))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return bool(result["failed"])


if __name__ == "__main__":
    sys.exit(main())
