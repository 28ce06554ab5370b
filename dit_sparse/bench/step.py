"""One denoising step of a real architecture: dense, sparse, and with attention taken out.

The last one tells attention's share: the step's time less that of the same step whose
self-attention returns v; no method can be faster. Sparse methods run at their published settings
for the model, where a profile is shipped, past their dense first steps and in the warm state: every
timed call is a later step of one generation. Dense attention is the fastest that diffusers has; and
the fastest of all through our seam, where that is FlashAttention-4 or the model gives a mask, which
hides nothing here and slows diffusers' attention down. One compiled block serves dense attention,
another the seam and with it every method. On a GPU a profiled step tells how long linear layers,
attention kernels and all other kernels keep the device busy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_sparse import api
from dit_sparse.arrange.raster import Raster
from dit_sparse.bench.architectures import Architecture, Size
from dit_sparse.bench.baselines import DENSE
from dit_sparse.bench.check import NotTimed
from dit_sparse.bench.kernel import Call, dense_rows, draw, no_room, timed
from dit_sparse.bench.machine import Timer, parts
from dit_sparse.bench.method import verify
from dit_sparse.bench.results import WITHOUT, Row, Shape
from dit_sparse.core import QKV, Context, Layout, Method, Plan
from dit_sparse.integrations.adapters import adapters
from dit_sparse.integrations.session import ASSUMED_STEPS
from dit_sparse.profile import find
from dit_sparse.registry import get
from dit_sparse.select.topk import TopK

# baselines by diffusers' names of them; native is for when no other runs
BACKENDS = {"cudnn": "_native_cudnn", "flash": "_native_flash"}


Params = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Case:
    """An architecture at a size, with the methods to set against dense, each with its parameters.

    guard: time every method also with a quality guard of this bound.
    """

    architecture: Architecture
    size: Size
    methods: tuple[tuple[str, Params], ...]
    small: bool = False
    compiled: bool = False
    guard: float | None = None

    @property
    def shape(self) -> Shape:
        """The self-attention of one layer."""
        shape = self.architecture.shape(self.size, self.small)
        return replace(shape, name=f"{shape.name} compiled") if self.compiled else shape

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Return the model, its blocks compiled if that was asked for."""
        model = self.architecture.build(device, dtype, self.small)
        if self.compiled:
            # graphs of the last model hold its weights
            torch.compiler.reset()
            for layers in model.children():
                for block in layers if isinstance(layers, nn.ModuleList) else ():
                    block.compile(dynamic=False)
        return model

    @property
    def row(self) -> Row:
        """The row of the step as a whole."""
        return Row(self.shape, "step")

    def method(self, name: str, own: Params = ()) -> tuple[Method, dict[str, Any], float]:
        """Return a method past its dense first steps, where its settings come from, and the share
        of those steps; own: its parameters that are not as published."""
        profile, params = find(self.architecture.name, name), dict(own)
        value = profile.build(**params) if profile else get(name, **params)
        settings = {"profile": f"{profile.model}--{profile.method}"} if profile else {}
        share = value.schedule.first_sparse_step(ASSUMED_STEPS) / ASSUMED_STEPS
        value = value.with_schedule(replace(value.schedule, dense_steps=0))
        return value, {**settings, **params}, share


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


@dataclass(frozen=True)
class Baseline:
    """Attend densely by a baseline of that name, without a mask.

    Among them is FlashAttention-4, which diffusers alone cannot take from an installed package.
    """

    name: str

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        return DENSE[self.name](x)()


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
                model = case.build(timer.device, dtype)
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
    alone = _attention_alone(case, timer, dtype)
    # cross-attention, and the layers a method leaves dense, run on the fastest that works too
    for name in [*sorted(BACKENDS.keys() & alone.keys(), key=alone.__getitem__), "native"]:
        choose = partial(model.set_attention_backend, BACKENDS.get(name, name))
        row = Row(case.shape, f"dense {name}", sparse=False)
        row = _timed(row, timer, step, choose, _finite)
        yield row
        if row.ms is not None:
            break
    kind = type(model).__name__
    if kind not in adapters():
        for name, _ in case.methods:
            yield Row(case.shape, name, why=f"no adapter yet for {kind}")
        return
    try:
        best = min(alone, key=alone.__getitem__, default="")
        masked = case.architecture.masked
        if best and (masked or best not in BACKENDS):
            row = Row(case.shape, f"dense {best}{', no mask' * masked}", sparse=False)
            method = replace(FREE, compute=Baseline(best))
            yield _timed(row, timer, step, partial(api.enable, model, method), _finite)
        row = Row(case.shape, WITHOUT, density=0.0)
        yield _timed(row, timer, step, partial(api.enable, model, FREE), _finite)
        for name, params in case.methods:
            for guard in dict.fromkeys((None, case.guard)):
                method, settings, dense_steps = case.method(name, params)
                row = Row(case.shape, name, settings=settings, dense_steps=dense_steps)
                yield _sparse_row(row, method, guard, model, timer, step, impl)
    finally:
        api.disable(model)


def _sparse_row(
    row: Row, method: Method, guard: float | None, model: Any, timer: Timer, step: Call, impl: str
) -> Row:
    """Time a step under one method; not before the method holds its bound on a small video."""
    watched = {} if guard is None else {"guard": guard}
    density = 1.0

    def check(out: Tensor) -> float:
        nonlocal density
        _finite(out)
        report = api.report(model)
        if not report.sparse_calls:
            why = next(iter(report.reasons), "no self-attention call arrived")
            raise NotTimed(f"every call was dense: {why}")
        density = report.density
        return verify(method, out, row.shape, impl, {})

    row = replace(row, settings={**row.settings, **watched})
    enable = partial(api.enable, model, method, impl=impl, **watched)
    return replace(_timed(row, timer, step, enable, check), density=density)


def _attention_alone(case: Case, timer: Timer, dtype: torch.dtype) -> dict[str, float]:
    """Return the ms of one dense attention call by each baseline that runs on this GPU.

    A step of a large model takes seconds: what is slower here is not tried there.
    """
    if timer.device.type != "cuda" or no_room(case.shape, timer.device, dtype):
        return {}
    x = draw(case.shape, timer.device, dtype)
    rows = dense_rows(case.shape, x, replace(timer, quick=True))
    return {row.what: row.ms for row in rows if row.ms is not None}


def _timed(
    row: Row, timer: Timer, step: Call, prepare: Callable[[], Any], check: Callable[..., Any]
) -> Row:
    """Return the row with the time of a step after `prepare`, and its parts."""
    stages: dict[str, float] = {}

    def build() -> Call:
        prepare()
        return step

    def checked(out: Tensor) -> Any:
        share = check(out)
        # one more step, which takes half a minute where attention is dense
        if row.sparse or not timer.quick:
            stages.update(parts(step, timer.device))
        return share

    return replace(timed(row, timer, build, checked), stages=stages)


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
