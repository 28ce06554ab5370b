"""The settings in which methods are evaluated on `needle` when none are named: few, middle, many.

They fit a model of six layers and texts of 4,096 to 16,384 tokens. Sizes of blocks are those of the
papers; what says how much is kept goes from little to much.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dit_sparse.errors import ArgumentError
from dit_sparse.quality.cases import Case

SWEEP: dict[str, tuple[dict[str, Any], ...]] = {
    "minference": tuple(
        {"columns": v, "slashes": n} for v, n in ((50, 100), (100, 200), (300, 800))
    ),
    "xattention": tuple({"tau": tau} for tau in (0.5, 0.7, 0.9)),
    "pbs_attn": tuple({"top_p": p} for p in (0.5, 0.8, 0.9)),
    "anchor": tuple({"theta": t, "step": 4} for t in (0.0, 2.0, 4.0)),
    # a threshold of one at all these lengths; that of the paper for 90 %
    "blasst": tuple({"factor": f} for f in (16384.0, 1418.14)),
    "seer": tuple({"threshold": t} for t in (0.02, 0.005, 5e-4)),
    "moba": tuple({"topk": n} for n in (8, 16, 32)),
    "hylra": (*({"tokens": n} for n in (512, 1024)), {"tokens": 1024, "policy": "FFFRRR"}),
    "block_topk": tuple({"pages": n} for n in (8, 16, 32)),
    "delta": tuple({"pages": n, "recent": 4, "first": 1, "deltas": (1, 3)} for n in (8, 16, 32)),
}
# a gate of its own, trained by demos/train_needle/gate.py
GATE = "seer.safetensors"


def sweep(methods: Iterable[str], folder: Path) -> list[Case]:
    """Return the cases of methods; folder: of the model, which may hold a gate for `seer`."""
    found = []
    for method in methods:
        if method not in SWEEP:
            raise ArgumentError(
                f"method {method} has no settings for needle; use {', '.join(SWEEP)}, or --case "
                f'"{method} KEY=VALUE"'
            )
        for params in SWEEP[method]:
            label = " ".join([method, *(f"{k}={_text(v)}" for k, v in params.items())])
            gate = folder / GATE
            if method == "seer" and gate.is_file():
                params = {**params, "weights": str(gate)}
            found.append(Case(label, method, dict(params)))
    return found


def _text(value: Any) -> str:
    """Write a value as --set takes it."""
    if isinstance(value, tuple):
        return str(list(value)).replace(" ", "")
    return value if isinstance(value, str) else f"{value:g}"
