"""The clock, the facts of the machine, and its two limits."""

from __future__ import annotations

import functools
import gc
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dit_sparse.bench.results import Limits

# above this three calls are enough, above that one if quick; below, triton's do_bench makes many
# and flushes the L2 cache
SLOW_MS, SLOWER_MS = 200.0, 2000.0
# names of operators begin so; kernel: of attention
OPERATORS = {
    "linear": ("aten::addmm", "aten::_addmm", "aten::mm", "aten::bmm"),
    "kernel": (
        "aten::_cudnn_attention", "aten::_flash_attention", "aten::_scaled_dot_product",
        "dit_sparse::block_sparse", "FlashAttn",
    ),
}  # fmt: skip
PARTS = (*OPERATORS, "other")
FIELDS = {
    "driver_version": "driver",
    "clocks.sm": "clock_mhz",
    "clocks.max.sm": "max_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.draw": "watts",
    "temperature.gpu": "celsius",
}


@dataclass(frozen=True)
class Timer:
    """Medians on a device.

    quick: fewer repetitions, for a first look. replay: time a CUDA graph of the call where there
    can be one, so that the host has no share: it needs .3 ms and more to launch a sparse call.
    """

    device: torch.device
    quick: bool = False
    replay: bool = False

    def ms(self, call: Callable[[], Any]) -> float:
        """Return the median time in ms of a call that ran before."""
        budget, runs = (20, 3) if self.quick else (100, 7)
        once = self.once(call)
        if once > SLOWER_MS and self.quick:
            return once
        # again: clocks rise, and an autotuner may have waited for the second call
        once = once if once > SLOWER_MS else self.once(call)
        if once > SLOW_MS:
            return statistics.median([once, self.once(call), self.once(call)])
        if self.device.type == "cuda":
            call = captured(call, self.device)[0] if self.replay else call
            from triton.testing import do_bench

            rep = max(budget, int(runs * once))
            median: Any = do_bench(call, warmup=25, rep=rep, return_mode="median")
            return float(median)
        runs = min(200, max(runs, int(budget / max(once, 1e-3))))
        return statistics.median(self.once(call) for _ in range(runs))

    def once(self, call: Callable[[], Any]) -> float:
        """Return the time of one call."""
        self._wait()
        begin = time.perf_counter()
        call()
        self._wait()
        return (time.perf_counter() - begin) * 1e3

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def captured(call: Callable[[], Any], device: torch.device) -> tuple[Callable[[], Any], Any]:
    """Return a replay of a call as a CUDA graph, and the output that it writes.

    Where there is no graph of it, on a CPU or because it waits for the device: the call and None.
    """
    if device.type != "cuda":
        return call, None
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            out = call()
    except Exception:
        # whatever another's kernel raises then
        torch.cuda.synchronize(device)
        return call, None
    return graph.replay, out


def parts(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Return the ms that one call keeps the device busy: linear, attention kernel and other.

    What runs there belongs to the operator that launched it; {} on a CPU.
    """
    if device.type != "cuda":
        return {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as told:
        call()
        torch.cuda.synchronize(device)
    found, events = {}, [e for e in told.key_averages() if not e.is_user_annotation]
    for kind, names in OPERATORS.items():
        its = [e for e in events if e.device_type.name == "CPU" and e.key.startswith(names)]
        found[kind] = sum(e.self_device_time_total for e in its) / 1e3
    busy = sum(e.self_device_time_total for e in events if e.device_type.name != "CPU") / 1e3
    return {**found, PARTS[-1]: busy - sum(found.values())}


def facts(device: torch.device) -> dict[str, Any]:
    """Return the versions and the name of the device; a missing fact is left out."""
    found: dict[str, Any] = {"device": platform.processor() or platform.machine()}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found["cuda"] = torch.version.cuda or torch.version.hip
        found["cudnn"] = torch.backends.cudnn.version()
    else:
        found["threads"] = torch.get_num_threads()
    found["python"], found["torch"] = platform.python_version(), torch.__version__
    for name in ("dit-sparse", "triton", "diffusers", "flash-attn-4"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def measure_limits(timer: Timer, dtype: torch.dtype) -> tuple[Limits, dict[str, Any]]:
    """Return the limits of the device, and its clocks read while it multiplies."""
    device, large = timer.device, timer.device.type == "cuda"
    n, numbers = (8192, 1 << 29) if large else (512, 1 << 22)
    a = torch.randn(n, n, device=device, dtype=dtype)
    b = torch.empty_like(a)
    product = functools.partial(torch.mm, a, a, out=b)
    once, clocks = timer.ms(product), {}
    if large:
        # the queue stays full for about half a second: an idle GPU would show an idle clock
        for _ in range(int(500 / once) + 1):
            product()
        clocks = read_clocks(device)
        torch.cuda.synchronize(device)
    x = torch.zeros(numbers, device=device, dtype=torch.int16)
    y = torch.empty_like(x)
    gbs = 4 * numbers / timer.ms(lambda: y.copy_(x)) / 1e6
    return Limits(2 * n**3 / once / 1e9, gbs, dtype.itemsize), clocks


def read_clocks(device: torch.device) -> dict[str, Any]:
    """Return driver, clocks, power and temperature by nvidia-smi; {} without it."""
    tool = shutil.which("nvidia-smi")
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None) if tool else None
    if tool is None or uuid is None:
        return {}
    # the number of a GPU counts the visible ones only; its uuid is the same for all
    query = [f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", f"--id=GPU-{uuid}"]
    try:
        told = subprocess.run([tool, *query], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if told.returncode:
        return {}
    values = (value.strip() for value in told.stdout.strip().split(","))
    return {name: _number(value) for name, value in zip(FIELDS.values(), values, strict=False)}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def gib(size: float) -> str:
    """Write a number of bytes."""
    return f"{size / 2**30:.1f} GiB"


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on the device; on a CPU what the machine has."""
    if device.type == "cuda":
        # what the last case used is cached, or waits in a cycle of hooks
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if not hasattr(os, "sysconf"):
        return 1 << 62
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
