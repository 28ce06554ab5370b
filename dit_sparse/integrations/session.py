"""One enabled model while it generates: its method, its state, and what happened at each call."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dit_sparse.compute.attend import Dense
from dit_sparse.core import QKV, Context, Method
from dit_sparse.integrations.adapters import Adapter, box
from dit_sparse.integrations.clock import Clock
from dit_sparse.profile import Profile
from dit_sparse.reporting import Cell, Progress
from dit_sparse.weights import layer_weights

# a share of the steps (dense_steps=0.25) needs their number; where no pipeline tells it, this one
ASSUMED_STEPS = 50

_handles = itertools.count()
_live: weakref.WeakValueDictionary[int, Session] = weakref.WeakValueDictionary()


@dataclass
class Part:
    """One transformer of an enabled model.

    dense: the backend each layer had before. context: returns diffusers' cache context, its name
    (before 0.38) or None.
    """

    name: str
    adapter: Adapter
    dense: list[Any]
    context: Callable[[], Any] = lambda: None


@dataclass
class Tally:
    """The calls of one layer at one step; densities stay on the device until a report is read."""

    calls: int = 0
    densities: list[Tensor] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


class Session:
    """What `enable` creates. Compiled graphs hold only its number, in the context tensor.

    The context tensor is int64 on the CPU: handle, part, step, steps, frames, height, width,
    text, branch. It is written by `enter` and read by `attend` when the graph runs.
    """

    def __init__(
        self, model: Any, label: str, method: Method, profile: Profile | None, impl: str
    ) -> None:
        self.model, self.label, self.method = type(model).__name__, label, method
        self.profile, self.impl = profile, impl
        self.pipe = weakref.ref(model)
        self.parts: list[Part] = []
        self.clock = Clock()
        self.states: dict[tuple[int, int, int], dict] = {}
        self.tallies: dict[tuple[int, int, int], Tally] = {}
        self.checked: set[tuple[int, ...]] = set()
        self.implementations: dict[str, str] = {}
        self.box: tuple[Any, tuple[int, int, int] | None] = (None, None)
        self.warned = False
        self.handle = next(_handles)
        _live[self.handle] = self

    def __deepcopy__(self, memo: dict) -> Session:
        # a copied model keeps the number of this session in its context tensors
        return self

    @staticmethod
    def of(ctx: Tensor) -> Session:
        """Return the session a context tensor belongs to."""
        return _live[int(ctx[0])]

    def add(self, part: Part) -> Tensor:
        """Add a transformer; return its context tensor [9]."""
        self.parts.append(part)
        # outside inference mode, for it is written again at every step
        with torch.inference_mode(False):
            return torch.tensor([self.handle, len(self.parts) - 1, *[0] * 7])

    def enter(
        self, ctx: Tensor, timestep: Tensor | None, ids: Tensor | None, sizes: list[int]
    ) -> None:
        """Find the step of a transformer call and write it with the grid into `ctx`."""
        part = int(ctx[1])
        before = self.clock.generation, self.clock.step

        def read() -> float:
            return 0.0 if timestep is None else float(timestep.max())

        branch = self.clock.tick(str(part), self.parts[part].context(), self.pipe(), read)
        generation, step = self.clock.generation, self.clock.step
        if generation != before[0]:
            self.states.clear()
            self.tallies.clear()
            self.box = (None, None)
        elif step != before[1] and not self.tallies and not self.warned:
            self.warned = True
            warnings.warn(
                f"dit_sparse: no self-attention call of {self.model} arrived in its first step; "
                "was set_attention_backend called after enable? Call enable again",
                stacklevel=2,
            )
        frames, height, width, text = sizes
        if ids is not None:
            # positions cannot change within a generation: one wait for the device, not one per step
            key = (part, tuple(ids.shape), ids.data_ptr())
            if self.box[0] != key:
                self.box = (key, box(ids))
            frames, height, width = self.box[1] or (0, 0, 0)
        values = [step, self.clock.steps, frames, height, width, text, branch]
        ctx[2:] = torch.tensor(values)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        ctx: Tensor,
        scale: float | None,
        odd: str,
    ) -> Tensor | None:
        """Run the method on q, k, v [B, S, H, D]; None when this call must be dense.

        odd: what makes the call one that no method honours, "" when nothing does.
        """
        _, part, step, steps, *sizes, branch = ctx.tolist()
        steps = steps or ASSUMED_STEPS
        reason = odd or self._why_never(q, k, sizes)
        if not reason:
            self._check(part, q.shape[2], steps, sizes)
            reason = self._why_dense(layer, step, steps)
        tally = self.tallies.setdefault((part, layer, step), Tally())
        tally.calls += 1
        if reason:
            tally.reasons[reason] += 1
            return None
        call = Context(
            grid=self.parts[part].adapter.grid(*sizes),
            layer=layer,
            step=step,
            steps=steps,
            scale=scale,
            impl=self.impl,
            state=self.states.setdefault((part, layer, branch), {}),
            weights=layer_weights(self.method, layer, q.device, self.parts[part].name),
        )
        x = QKV(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        # kernels are launched on the current device, which need not be that of the pipeline
        with torch.cuda.device_of(q):
            plan = self.method.plan(x, call)
            out = self.method.compute(x, plan, call)
        tally.densities.append(plan.density())
        if "kernel" in call.cache:
            name, why = call.cache["kernel"]
            self.implementations[name] = why
        return out.transpose(1, 2)

    def _check(self, part: int, heads: int, steps: int, sizes: list[int]) -> None:
        """Raise where the method does not fit, before a dense first step and once per setting."""
        setting = (part, heads, steps, *sizes)
        if setting not in self.checked:
            of = self.parts[part]
            self.method.check(len(of.dense), heads, steps, of.adapter.grid(*sizes))
            self.checked.add(setting)

    def _why_never(self, q: Tensor, k: Tensor, sizes: list[int]) -> str:
        """Return the reason why calls like this cannot be sparse at any step, "" when they can."""
        frames, height, width, text = sizes
        tokens = frames * height * width + text
        if not frames:
            return "the tokens form no single box of frames x rows x columns"
        if not q.shape[1] == k.shape[1] == tokens:
            return f"q has {q.shape[1]} tokens, k {k.shape[1]}, the grid {tokens}"
        if isinstance(self.method.compute, Dense):
            return "the method is dense"
        return ""

    def _why_dense(self, layer: int, step: int, steps: int) -> str:
        """Return the reason why the schedule makes a call dense, "" when it does not."""
        schedule = self.method.schedule
        if schedule.at(layer, step, steps) == "dense":
            early = step < schedule.first_sparse_step(steps)
            return "schedule: a dense first step" if early else "schedule: a dense layer"
        return ""

    def end(self) -> None:
        """Free the state; the next call starts a new generation."""
        self.clock.ended = True
        self.states.clear()

    def cells(self, step: int | None = None) -> tuple[Cell, ...]:
        """Return what was counted, for one step or all; waits for the device."""
        found = []
        for (part, layer, at), tally in sorted(self.tallies.items()):
            if step is None or at == step:
                sparse = len(tally.densities)
                total = float(torch.stack(tally.densities).sum()) if sparse else 0.0
                density = (total + tally.calls - sparse) / tally.calls
                name, reasons = self.parts[part].name, dict(tally.reasons)
                found.append(Cell(name, layer, at, tally.calls, sparse, density, reasons))
        return tuple(found)

    def progress(self) -> Progress:
        """Return the newest step and its density so far."""
        cells = self.cells(self.clock.step)
        calls = sum(cell.calls for cell in cells)
        density = sum(cell.density * cell.calls for cell in cells) / calls if calls else None
        return Progress(self.clock.step, self.clock.steps, density)
