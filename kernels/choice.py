"""Which kernel runs a call of attention.py, and why. Importing this file imports no Triton."""

from __future__ import annotations

import functools
import importlib
import sys

import torch
from torch import Tensor

from dit_sparse.kernels.contract import IMPLS, Columns, Cut, as_cut

# what `impl` may be of one attention call; "hopper" is not offered beyond: it takes not every call
# of a method
KERNELS = (*IMPLS, "hopper")


@functools.cache
def triton_missing() -> str:
    """Return why Triton cannot be used and what would help, "" where it can."""
    try:
        importlib.import_module("triton")
    except Exception as error:
        other = {"win32": "pip install triton-windows", "darwin": "there is none for macOS"}
        help = other.get(sys.platform, "pip install triton")
        return f"triton cannot be imported ({type(error).__name__}): {help}"
    return ""


@functools.cache
def _device_missing(index: int) -> str:
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < (8, 0):
        return f"{torch.cuda.get_device_name(index)} is older than compute capability 8.0"
    return triton_missing()


def implementation(q: Tensor) -> tuple[str, str]:
    """Return (name, reason) of the implementation that `impl="auto"` takes for tensors like q."""
    if q.device.type != "cuda":
        return "torch", f"tensors are on {q.device.type}"
    if q.dtype == torch.float64:
        return "torch", "the triton kernel has no float64"
    if max(q.shape[-1], 1) > 256:
        return "torch", f"head dim {q.shape[-1]} is above the triton kernel's 256"
    reason = _device_missing(q.device.index or 0)
    return ("torch", reason) if reason else ("triton", f"{torch.cuda.get_device_name(q.device)}")


def kernel(
    q: Tensor, k: Tensor, v: Tensor, *, q_blocks: Cut | int, kv_blocks: Cut | int, columns: Columns
    | None = None, row_mask: Tensor | None = None, causal: bool = False, impl: str = "auto", quant:
    str = "none",
) -> tuple[str, str]:  # fmt: skip
    """Return (name, reason) of the kernel that runs a call: one of KERNELS, not "auto".

    With quant="fp8" the reason ends in "in fp8", or tells why not.
    """
    name, reason = impl, "asked for"
    if impl == "auto":
        name, reason = implementation(q)
        if name == "triton":
            from dit_sparse.kernels import hopper

            cuts = as_cut(q_blocks), as_cut(kv_blocks)
            why_not = hopper.why_not(q, k, v, *cuts, columns, row_mask, causal)
            if why_not:
                reason += f"; not the Hopper kernel: {why_not}"
            else:
                name = "hopper"
    if quant == "fp8":
        why_not = why_not_fp8(name, as_cut(kv_blocks), columns)
        reason += f"; not in fp8: {why_not}" if why_not else "; in fp8"
    return name, reason


def why_not_fp8(name: str, kv_cut: Cut, columns: Columns | None) -> str:
    """Return why a kernel does not take a call with quant="fp8", "" where it does."""
    if name == "triton":
        return "the portable kernel has none"
    if name == "hopper" and (kv_cut.offsets is not None or kv_cut.size % 16):
        return "key blocks are not all of one size, a multiple of 16"
    return "" if columns is None else "columns are not quantised"
