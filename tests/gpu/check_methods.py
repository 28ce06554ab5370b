"""Run the conformance suite on a GPU, and time whole methods against dense attention.

    python tests/gpu/check_methods.py --out methods.json

Time: median of CUDA events over repeated calls, selection and remainder included, bf16.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import dit_sparse
from dit_sparse.testing import PROPERTIES, check_property

# name, heads, head dim, grid: Wan2.1-1.3B at 480p; a quarter of HunyuanVideo's heads at 720p
SHAPES = (
    ("A", 12, 128, dit_sparse.Grid(21, 30, 52)),
    ("B", 6, 128, dit_sparse.Grid(33, 45, 80)),
)
RUNS = (
    ("pisa", {"keep": 0.1}),
    ("pisa", {"keep": 0.1, "order": 0, "error_bias": False}),
    ("draft", {"keep": 0.1}),
)


def conformance() -> list[str]:
    """Return what failed, by method and property."""
    torch.set_default_device("cuda")
    failed = []
    for name in dit_sparse.methods():
        for prop in PROPERTIES:
            try:
                check_property(name, prop)
            except Exception as error:
                failed.append(f"{name} {prop}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
    torch.set_default_device("cpu")
    return failed


def median(call) -> float:
    """Return milliseconds."""
    from triton.testing import do_bench

    call()
    return do_bench(call, warmup=50, rep=400, return_mode="median")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    warnings.filterwarnings("ignore", category=UserWarning)
    failed = conformance()
    rows = []
    for shape, heads, dim, grid in SHAPES:
        # neighbours resemble each other, as in a video; uniform noise would have flat scores
        q, k, v = torch.randn(3, 1, heads, grid.tokens, dim, device="cuda").bfloat16()
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            dense = median(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))  # noqa: B023
        for name, params in RUNS:
            density = dit_sparse.plan(q, k, v, name, grid=grid, **params).density().item()
            took = median(lambda: dit_sparse.attention(q, k, v, name, grid=grid, **params))  # noqa: B023
            rows.append(
                {"shape": shape, "tokens": grid.tokens, "method": name, **params, "density": density,
                 "ms": took, "dense_cudnn_ms": dense, "speedup": dense / took}
            )  # fmt: skip
    print(f"conformance: {len(failed)} failed")
    print("\n".join(failed))
    for row in rows:
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    if out:
        device = torch.cuda.get_device_name()
        out.write_text(json.dumps({"device": device, "failed": failed, "rows": rows}, indent=1) + "\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
