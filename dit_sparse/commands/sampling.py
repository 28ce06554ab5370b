"""One run of a pipeline: frames out, each denoising step timed, density read on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from dit_sparse.errors import ArgumentError, BrokenOutputError, DitSparseError


class RunError(Exception):
    """A generation failed while running; exit code 1."""


@dataclass
class Run:
    """What one generation gave."""

    frames: Any = None  # [F, H, W, 3] in 0..1
    seconds: float = 0.0  # all of the call
    steps: list[float] = field(default_factory=list)  # seconds of each denoising step
    report: Any = None  # of the integration, None for a dense run

    @property
    def denoising(self) -> float:
        """Seconds of all denoising steps, without text encoding and decoding."""
        return sum(self.steps)

    @property
    def step(self) -> float:
        """Seconds of the median step."""
        return median(self.steps) if self.steps else 0.0

    @property
    def density(self) -> float:
        """Measured share of exact query-key pairs over all self-attention calls; dense = 1."""
        return 1.0 if self.report is None else float(self.report.density)


class Stopwatch:
    """Stands in for a pipeline's progress bar: every diffusers loop opens and updates one."""

    def __init__(self, sync: Callable[[], None], tell: Callable[[list[float], int], None]) -> None:
        self.sync, self.tell = sync, tell
        self.steps: list[float] = []
        self.total, self.items, self.last = 0, None, 0.0

    def __call__(self, iterable: Iterable | None = None, total: int | None = None) -> Stopwatch:
        self.items = None if iterable is None else list(iterable)
        self.total += (total or 0) if self.items is None else len(self.items)
        return self

    def __enter__(self) -> Stopwatch:
        self.sync()
        self.last = time.perf_counter()
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.items or ():
                yield item
                self.update()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None  # the rest of tqdm

    def update(self, n: int | float | None = 1) -> None:
        """Take the time of a step."""
        self.sync()
        self.steps.append(time.perf_counter() - self.last)
        self.tell(self.steps, max(self.total, len(self.steps)))
        # what was told is no part of a step
        self.last = time.perf_counter()


def sample(pipe: Any, arguments: dict[str, Any], seed: int, bar: Any = None) -> Run:
    """Generate with a pipeline; returns frames [F, H, W, 3] and the time of each step."""
    import torch

    on_gpu = torch.device(pipe.device).type == "cuda"
    sync = torch.cuda.synchronize if on_gpu else lambda: None
    run = Run()

    def tell(steps: list[float], total: int) -> None:
        if bar is not None:
            now = density_of(pipe)
            density = "" if now is None else f"  density {now:.0%}"
            bar.show(len(steps), total, f"{steps[-1]:.2f} s/step{density}")

    watch = Stopwatch(sync, tell)
    with timed_by(pipe, watch), explained():
        start = time.perf_counter()
        # on the CPU, so that every device starts from the same noise
        result = pipe(**arguments, generator=torch.Generator("cpu").manual_seed(seed))
        sync()
        run.seconds, run.steps = time.perf_counter() - start, watch.steps
        run.report = report_of(pipe)
    frames = result.frames[0] if hasattr(result, "frames") else result.images
    if arguments.get("output_type") == "np":
        run.frames = np.asarray(frames)
        if not all(np.isfinite(frame).all() for frame in run.frames):
            raise RunError("the model made values that are not finite; try --dtype float32")
    return run


def report_of(pipe: Any) -> Any:
    """Return the integration's report, None when the pipeline is not enabled."""
    import dit_sparse

    try:
        report = dit_sparse.report(pipe)
    except ArgumentError:  # never enabled
        return None
    return report if report.enabled else None


def density_of(pipe: Any) -> float | None:
    """Return the density of the step that ran last, None when the pipeline is not enabled."""
    from dit_sparse.integrations.diffusers import progress

    try:
        return progress(pipe).density
    except ArgumentError:
        return None


@contextmanager
def timed_by(pipe: Any, watch: Stopwatch) -> Iterator[None]:
    """Use a stopwatch as the pipeline's progress bar."""
    pipe.progress_bar = watch
    try:
        yield
    finally:
        del pipe.progress_bar


@contextmanager
def explained() -> Iterator[None]:
    """Turn what goes wrong inside a generation into one line; our own errors are one already."""
    import torch

    try:
        yield
    except BrokenOutputError as error:
        raise RunError(str(error)) from error
    except DitSparseError:
        raise
    except torch.OutOfMemoryError as error:
        hint = "the GPU's memory is too small; try a smaller --height, --width or --frames"
        raise RunError(hint) from error
    except Exception as error:
        raise RunError(f"the generation failed: {type(error).__name__}: {error}") from error
