"""Several processes, one generation: who takes part, and the host's context parallelism for it."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from dit_sparse.errors import ArgumentError, DitSparseError
from dit_sparse.integrations.adapters import COMPONENTS


@dataclass(frozen=True)
class Processes:
    """The processes that `torchrun` started: which one this is, and how many there are."""

    rank: int = 0
    ranks: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0


def started() -> Processes:
    """Return what `torchrun` says of this process; one alone when it was not used."""
    try:
        return Processes(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    except KeyError:
        return Processes()
    except ValueError:
        told = f"RANK={os.environ['RANK']!r}, WORLD_SIZE={os.environ['WORLD_SIZE']!r}"
        raise ArgumentError(f"{told} in the environment are no numbers") from None


def join(kind: str) -> torch.device:
    """Meet the other processes; return the device of this one: its own GPU, or the CPU."""
    device = torch.device(kind)
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise ArgumentError(
                f"torchrun started more processes than the {torch.cuda.device_count()} GPUs here; "
                f"use --nproc-per-node {torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def share(pipe: Any, processes: Processes, device: torch.device) -> None:
    """Split the sequences of a pipeline's transformers over the processes (Ulysses).

    Before `dit_sparse.enable`, which takes the sharing over. Raises for classes that the host
    cannot split.
    """
    host: Any = importlib.import_module("diffusers")
    if not hasattr(host, "ContextParallelConfig"):
        raise DitSparseError(
            f"diffusers {host.__version__} has no context parallelism; install 0.36 or newer"
        )

    # unequal shares need a collective that gloo has not
    anything = {"ulysses_anything": True} if device.type == "cuda" else {}
    for name in COMPONENTS:
        part = getattr(pipe, name, None)
        if part is None:
            continue
        if getattr(part, "_cp_plan", None) is None:
            raise DitSparseError(
                f"{type(part).__name__} cannot be split over {processes.ranks} processes: "
                "diffusers has no plan for it; start one, or give many prompts with --prompts"
            )
        config = host.ContextParallelConfig(ulysses_degree=processes.ranks, **anything)
        with _devices(processes, device):
            part.enable_parallelism(config=config)


@contextlib.contextmanager
def _devices(processes: Processes, device: torch.device) -> Iterator[None]:
    """Let the host find devices to share: it asks for accelerators, also on a CPU."""
    if device.type != "cpu":
        yield
        return
    cpu = mock.patch.object(torch._C, "_get_accelerator", lambda: torch.device("cpu"))
    with cpu, mock.patch.object(torch.accelerator, "device_count", lambda: processes.ranks):
        yield


def meet() -> None:
    """Wait until every process is here; does nothing alone.

    One that leaves while others still talk to it can take them down.
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Part from the other processes; does nothing alone."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
