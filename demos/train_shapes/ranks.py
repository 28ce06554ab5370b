"""One run over any number of processes: devices, the wall clock, agreed decisions, saved state and
the record.
"""

import json
import os
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class Run:
    """Hold what every stage needs to know about this process and this call."""

    def __init__(
        self,
        work: str,
        minutes: float,
        device: str,
        started: float,
        *,
        compiled: bool,
        reserve: float,
    ):
        # one host is all this needs: no outer network, no multicast
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        self.rank, self.world = (
            int(os.environ.get("RANK", "0")),
            int(os.environ.get("WORLD_SIZE", "1")),
        )
        local = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        if self.world > 1:
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, timeout=timedelta(minutes=9))
        self.work, self.compiled = Path(work), compiled
        self.work.mkdir(parents=True, exist_ok=True)
        self.started, self.deadline = started, started + 60 * minutes - reserve
        self.last_save = time.monotonic()
        path = self.work / "record.json"
        self.record: dict[str, Any] = (
            json.loads(path.read_text()) if path.exists() else {"stages": {}, "pieces": []}
        )
        self.call = len(self.record["pieces"])

    @property
    def main(self) -> bool:
        return self.rank == 0

    def generator(self, salt: int) -> torch.Generator:
        """Make this rank's own random numbers; a later piece passes another salt."""
        return torch.Generator(self.device).manual_seed(1_000_003 * salt + 7919 * self.rank + 17)

    def left(self) -> float:
        """Return the seconds left in this call."""
        return self.deadline - time.monotonic()

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def agree(self, *values: float) -> list[float]:
        """Let rank 0 decide: broadcast its numbers, over the CPU so that no GPU work waits."""
        if self.world == 1:
            return list(values)
        box = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(box, 0)
        return box.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Collect one object from every rank, on every rank."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        # objects travel as bytes on the CPU backend
        group = dist.new_group(backend="gloo")
        dist.all_gather_object(box, value, group=group)
        dist.destroy_process_group(group)
        return box

    def average(self, parameters: list[torch.Tensor]) -> None:
        """Average the gradients over the ranks in one flat transfer."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        parts = [
            part.view(g.shape)
            for part, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)
        ]
        torch._foreach_copy_(gradients, parts)

    def autocast(self) -> AbstractContextManager[Any]:
        return (
            torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        )

    def say(self, *words: Any) -> None:
        if self.main:
            print(f"[{time.monotonic() - self.started:6.1f}s]", *words, flush=True)

    def note(self, stage: str, **row: Any) -> None:
        """Add to a stage's record and write record.json."""
        self.record["stages"].setdefault(stage, {}).update(row)
        if self.main:
            write(self.work / "record.json", json.dumps(self.record, indent=1))

    def done(self, stage: str) -> bool:
        return bool(self.record["stages"].get(stage, {}).get("done"))

    def save(self, stage: str, state: dict[str, Any]) -> None:
        """Write a stage's full state, called on every rank; a cut call leaves the previous one
        whole.
        """
        if self.main:
            path = self.work / f"{stage}.pt"
            torch.save(state, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        # nobody reads it before it is there
        self.agree(0.0)
        self.last_save = time.monotonic()

    def load(self, stage: str) -> dict[str, Any] | None:
        path = self.work / f"{stage}.pt"
        return (
            torch.load(path, map_location=self.device, weights_only=True) if path.exists() else None
        )


def write(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


class OutOfTime(Exception):
    """Say that the call ends here with its state saved."""


class GateFailed(Exception):
    """Say that a stage did not reach what the next one needs."""
