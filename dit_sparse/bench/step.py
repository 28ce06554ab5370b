"""One denoising step of a real architecture: dense, sparse, and with attention taken out.

The last one tells attention's share: the step's time less that of the same step whose
self-attention returns v; no method can be faster. Sparse methods run at their published settings
for the model, where a profile is shipped, past their dense first steps and in the warm state: every
timed call is a later step of one generation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dit_sparse import api
from dit_sparse.arrange.raster import Raster
from dit_sparse.bench.architectures import Architecture, Size
from dit_sparse.bench.check import NotTimed
from dit_sparse.bench.kernel import Call, timed
from dit_sparse.bench.machine import Timer
from dit_sparse.bench.method import verify
from dit_sparse.bench.results import WITHOUT, Row, Shape
from dit_sparse.core import QKV, Context, Layout, Method, Plan
from dit_sparse.integrations.adapters import adapters
from dit_sparse.profile import find
from dit_sparse.registry import get
from dit_sparse.select.topk import TopK

# diffusers' names of the dense backends worth trying; native is for when no other runs
BACKENDS = {"cuda": ("_native_cudnn", "_native_flash", "native"), "cpu": ("native",)}


@dataclass(frozen=True)
class Case:
    """An architecture at a size, with the methods to set against dense."""

    architecture: Architecture
    size: Size
    methods: tuple[str, ...]
    params: tuple[tuple[str, Any], ...] = ()
    small: bool = False

    @property
    def shape(self) -> Shape:
        """The self-attention of one layer."""
        return self.architecture.shape(self.size, self.small)

    @property
    def row(self) -> Row:
        """The row of the step as a whole."""
        return Row(self.shape, "step")

    def method(self, name: str) -> tuple[Method, dict[str, Any]]:
        """Return a method past its dense first steps, and where its settings come from."""
        profile, params = find(self.architecture.name, name), dict(self.params)
        value = profile.build(**params) if profile else get(name, **params)
        settings = {"profile": f"{profile.model}--{profile.method}"} if profile else {}
        value = value.with_schedule(replace(value.schedule, dense_steps=0))
        return value, {**settings, **params}


@dataclass(frozen=True)
class Flat:
    """Score every pair of blocks 0."""

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        return x.q.new_zeros(*x.q.shape[:2], layout.q.video, layout.kv.video)


@dataclass(frozen=True)
class Values:
    """Return v instead of attending: self-attention that costs next to nothing."""

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        return x.v.clone()


# one block holds the longest video
FREE = Method(Raster(1 << 30), Flat(), TopK(1.0), Values())


def run(
    cases: Iterable[Case], timer: Timer, dtype: torch.dtype, impl: str = "auto"
) -> Iterator[Row]:
    """Time the step of each case: the fastest dense, without attention, then each method."""
    name, model = "", None
    for case in cases:
        architecture = case.architecture
        if architecture.name != name:
            # the last model goes before the next one comes
            name, model = architecture.name, None
            try:
                model = architecture.build(timer.device, dtype, case.small)
            except NotTimed as error:
                yield replace(case.row, why=str(error))
        if model is not None:
            try:
                yield from _rows(case, model, timer, dtype, impl)
            finally:
                # diffusers keeps the last choice for the whole process
                model.set_attention_backend("native")


def _rows(case: Case, model: Any, timer: Timer, dtype: torch.dtype, impl: str) -> Iterator[Row]:
    """Time one case; the model is left as it was but for its backend."""
    step = steps(case, model, timer.device, dtype)
    dense: dict[str, Row] = {}
    for backend in BACKENDS[timer.device.type]:
        if backend == "native" and dense:
            continue

        def choose(backend: str = backend) -> Call:
            model.set_attention_backend(backend)
            return step

        row = Row(case.shape, f"dense {backend.removeprefix('_native_')}", sparse=False)
        row = timed(row, replace(timer, single=True), choose, _finite)
        if row.ms is None:
            yield row
        else:
            dense[backend] = row
    # cross-attention, and the layers a method leaves dense, run on the fastest too
    best = min(dense, key=lambda backend: dense[backend].ms or 0.0, default="native")
    model.set_attention_backend(best)
    for backend, row in dense.items():
        slower = f"one call took {row.ms or 0.0:.0f} ms; {dense[best].what} is faster"
        yield (
            replace(row, ms=None, why=slower)
            if backend != best
            else replace(row, ms=timer.ms(step))
        )
    kind = type(model).__name__
    if kind not in adapters():
        for name in case.methods:
            yield Row(case.shape, name, why=f"no adapter yet for {kind}")
        return
    try:
        api.enable(model, FREE)
        yield timed(Row(case.shape, WITHOUT, density=0.0), timer, lambda: step, _finite)
        for name in case.methods:
            yield _sparse_row(case, name, model, timer, step, impl)
    finally:
        api.disable(model)


def _sparse_row(case: Case, name: str, model: Any, timer: Timer, step: Call, impl: str) -> Row:
    """Time a step under one method; not before the method holds its bound on a small video."""
    method, settings = case.method(name)
    density = 1.0

    def build() -> Call:
        api.enable(model, method, impl=impl)
        return step

    def check(out: Tensor) -> float:
        nonlocal density
        _finite(out)
        report = api.report(model)
        if not report.sparse_calls:
            why = next(iter(report.reasons), "no self-attention call arrived")
            raise NotTimed(f"every call was dense: {why}")
        density = report.density
        return verify(method, out, case.shape, impl, {})

    row = timed(Row(case.shape, name, settings=settings), timer, build, check)
    return replace(row, density=density)


def steps(case: Case, model: Any, device: torch.device, dtype: torch.dtype) -> Call:
    """Return a call that runs the next step of one generation and returns its output."""
    g = torch.Generator(device).manual_seed(3)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, device=device, dtype=dtype)

    given = case.architecture.draw(case.size, case.small, make)
    # ever lower: the seam takes a rise for a new generation, whose state is cold
    times = (torch.tensor([0.999**n], device=device) for n in itertools.count())
    return lambda: model(**given, timestep=next(times), return_dict=False)[0]


def _finite(out: Tensor) -> None:
    """Raise unless a step's output is finite; there is no oracle of a whole model."""
    if not out.isfinite().all():
        raise NotTimed("wrong output: not finite", wrong=True)
