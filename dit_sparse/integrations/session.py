"""One enabled model while it generates: its method, its state, and what happened at each call."""

from __future__ import annotations

import itertools
import logging
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dit_sparse.compute.attend import Dense
from dit_sparse.core import QKV, Context, Grid, Heads, Method, Plan
from dit_sparse.errors import BrokenOutputError
from dit_sparse.integrations.adapters import Adapter, box
from dit_sparse.integrations.clock import Clock
from dit_sparse.integrations.gain import attention_share, told
from dit_sparse.integrations.guard import Guard
from dit_sparse.integrations.parallel import Ulysses
from dit_sparse.integrations.sequence import REST, Group, Sequence, apart, groups, valid_tokens
from dit_sparse.profile import Profile
from dit_sparse.reporting import Cell, Guarded, Progress, Tally
from dit_sparse.weights import layer_weights

# a share of the steps (dense_steps=0.25) needs their number; where no pipeline tells it, this one
ASSUMED_STEPS = 50

log = logging.getLogger("dit_sparse")
_handles = itertools.count()
_live: weakref.WeakValueDictionary[int, Session] = weakref.WeakValueDictionary()


@dataclass
class Part:
    """One transformer of an enabled model.

    dense: the backend each layer had before. context: returns diffusers' cache context, its name
    (before 0.38) or None. lost: returns how many layers lead elsewhere, and of how many. ulysses:
    the processes that share its sequences. shard: (rank, ranks) of tensor parallelism, which gives
    every process heads of its own. weights: of its matrices. size: the tokens and the width (heads
    times head dimension) of its longest call.
    """

    name: str
    adapter: Adapter
    dense: list[Any]
    context: Callable[[], Any] = lambda: None
    lost: Callable[[], tuple[int, int]] = lambda: (0, 0)
    ulysses: Ulysses | None = None
    shard: tuple[int, int] = (0, 1)
    weights: int = 0
    size: tuple[int, int] = (0, 0)

    def share(self) -> float:
        """Return the share of attention in the arithmetic of the longest call, 0 before any."""
        tokens, width = self.size
        return attention_share(self.weights, len(self.dense), width, tokens)

    def heads(self, held: int) -> Heads:
        """Return which of all heads attend in this process, whose projections make `held`."""
        rank, ranks = self.shard
        own = self.ulysses.heads(held) if self.ulysses else Heads(0, held)
        return Heads(rank * held + own.first, ranks * held)


class Call(NamedTuple):
    """One sparse call of one transformer, as `Session.watch` is told of it.

    x: q, k, v; out: [B, H, S, Dv]; branch: which of the CFG branches, counted from 0.
    """

    part: str
    layer: int
    step: int
    branch: int
    x: QKV
    plan: Plan
    out: Tensor
    ctx: Context


@dataclass(frozen=True)
class Place:
    """Where a call is: transformer, layer, step, CFG branch, and its number among several alike."""

    part: int
    layer: int
    step: int
    branch: int
    call: int


class Session:
    """What `enable` creates. Compiled graphs hold only its number, in the context tensor.

    The context tensor is int64 on the CPU: handle, part, step, steps, frames, height, width,
    extra tokens before and after, branch. It is written by `enter` and read by `attend` when the
    graph runs. watch: called with every sparse `Call`.
    """

    def __init__(
        self,
        model: Any,
        label: str,
        method: Method,
        profile: Profile | None,
        impl: str,
        guard: Guard | None = None,
    ) -> None:
        self.model, self.label, self.method = type(model).__name__, label, method
        self.profile, self.impl, self.guard = profile, impl, guard
        self.pipe = weakref.ref(model)
        self.parts: list[Part] = []
        self.clock = Clock()
        self.states: dict[tuple[int, ...], dict] = {}
        self.tallies: dict[tuple[int, int, int], Tally] = {}
        self.checked: set[tuple[Any, ...]] = set()
        self.groups: dict[tuple[Any, ...], tuple[Group, ...] | str] = {}
        self.counts: dict[tuple[int, int], int] = {}
        self.seen: list[tuple[Place, Tensor, Tensor]] = []
        self.implementations: dict[str, str] = {}
        self.boxes: dict[tuple[Any, ...], tuple[Tensor, tuple[int, int, int, int]]] = {}
        self.warned = False
        # what was chosen for a user who named no method; told once
        self.unnamed = ""
        self.watch: Callable[[Call], None] | None = None
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
        """Add a transformer; return its context tensor [10]."""
        self.parts.append(part)
        # outside inference mode, for it is written again at every step
        with torch.inference_mode(False):
            return torch.tensor([self.handle, len(self.parts) - 1, *[0] * 8], device="cpu")

    def enter(
        self, ctx: Tensor, timestep: Tensor | None, ids: Tensor | None, sizes: list[int]
    ) -> None:
        """Find the step of a transformer call and write it with the grid into `ctx`."""
        part = int(ctx[1])
        before = self.clock.generation, self.clock.step

        def read() -> float:
            return 0.0 if timestep is None else float(timestep.max())

        self.groups.clear()
        self.counts.clear()
        branch = self.clock.tick(str(part), self.parts[part].context(), self.pipe(), read)
        generation, step = self.clock.generation, self.clock.step
        if generation != before[0]:
            self.states.clear()
            self.tallies.clear()
            self.boxes.clear()
            if self.guard is not None:
                self.guard.reset()
        elif before[1] == 0 != step:
            self._warn_if_lost()
        if (generation, step) != before:
            self._look_back()
        if ids is not None:
            sizes = self._placed(part, ids, sizes)
        ctx[2:] = torch.tensor([step, self.clock.steps, *sizes, branch], device="cpu")

    def _warn_if_lost(self) -> None:
        """Warn once when attention layers do not lead here, or did not in the first step."""
        lost, layers = (sum(n) for n in zip(*(p.lost() for p in self.parts), strict=True))
        if self.warned or (self.tallies and not lost):
            return
        self.warned = True
        what = f"{lost} of {layers} self-attention layers of {self.model} lost the sparse backend"
        if not lost:
            what = f"no self-attention call of {self.model} arrived in its first step"
        warnings.warn(
            f"dit_sparse: {what}; was set_attention_backend or set_attn_processor called after "
            "enable? Call enable again",
            stacklevel=2,
        )

    def _placed(self, part: int, ids: Tensor, sizes: list[int]) -> list[int]:
        """Return the sizes of a call as the positions [S, 3 or more] of its tokens tell them."""
        frames, height, width, before, after = sizes
        last = before == REST
        # one wait for the device as long as they are the same memory: held, so that it stays theirs
        writes = None if ids.is_inference() else ids._version
        key = (part, tuple(ids.shape), tuple(sizes), ids.data_ptr(), writes)
        if key not in self.boxes:
            video = ids.flip(-2) if last else ids[..., -frames * height * width :, :]
            self.boxes[key] = ids, box(video) or (0, 0, 0, 0)
        *found, rest = self.boxes[key][1]
        return [*found, rest, after] if last else [*found, before, after + rest]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: int,
        ctx: Tensor,
        scale: float | None,
        mask: Tensor | None,
        causal: bool,
        heads: Heads,
    ) -> Tensor | tuple[Group, ...]:
        """Run the method on q, k, v [B, S, H, D]; for a call that must be dense, return its groups
        where they are all that its mask says, their tokens side by side, else none."""
        _, part, step, steps, *sizes, branch = ctx.tolist()
        calls = self.parts[part].adapter.calls
        if causal and "text" in calls:
            return ()
        steps = steps or ASSUMED_STEPS
        at = Place(part, layer, step, branch, self._count(part, layer))
        of = Sequence(*sizes).of(k.shape[1], calls)
        found, why = self._groups(q, k, of, part, mask, causal)
        if not why:
            for group in found:
                self._check(part, heads.total, steps, group.grid)
            self._size(part, max(group.grid.tokens for group in found), heads.total * q.shape[-1])
            why = self._why_dense(part, layer, step, steps)
        tally = self.tallies.setdefault((part, layer, step), Tally())
        tally.calls += 1
        if why:
            tally.reasons[why] += 1
            side_by_side = all(isinstance(group.tokens, slice) for group in found)
            return found if mask is not None and side_by_side and q.shape[1] == k.shape[1] else ()
        queries, q = q.shape[1], of.spread(q)
        densities = []

        def run(q: Tensor, k: Tensor, v: Tensor, group: Group, number: int) -> Tensor:
            x = QKV(*(t.transpose(1, 2) for t in (q, k, v)))
            out, density = self._run(x, group.grid, at, number, steps, scale, heads)
            densities.append(density)
            return out.transpose(1, 2)

        out = apart(found, q, k, v, run)
        tally.densities.append(torch.stack(densities).mean())
        return of.collect(out, queries)

    def _run(
        self,
        x: QKV,
        grid: Grid,
        at: Place,
        group: int,
        steps: int,
        scale: float | None,
        heads: Heads,
    ) -> tuple[Tensor, Tensor]:
        """Run the method on a group of samples; return the output [b, H, s, D] and the density."""
        part = self.parts[at.part]
        call = Context(
            grid=grid,
            layer=at.layer,
            step=at.step,
            steps=steps,
            heads=heads,
            scale=scale,
            impl=self.impl,
            state=self.states.setdefault((at.part, at.layer, at.branch, at.call, group), {}),
            weights=layer_weights(self.method, at.layer, x.q.device, part.name),
        )
        plan = self.method.plan(x, call)
        out = self.method.compute(x, plan, call)
        # a channel of every token is enough: what is not finite spreads in the next layer
        came, left = (t[..., 0].sum(dtype=torch.float32) for t in (x.v, out))
        self.seen.append((at, came, left))
        if self.guard is not None:
            self.guard.look(x, out, at.part, call)
        if self.watch is not None:
            self.watch(Call(part.name, at.layer, at.step, at.branch, x, plan, out, call))
        if "kernel" in call.cache:
            name, why = call.cache["kernel"]
            self._ran(name, why, x.q.device)
        return out, plan.density()

    def _ran(self, name: str, why: str, device: torch.device) -> None:
        """Note which kernel ran, and why; say once that a GPU has to do with the slow one."""
        slow = name == "torch" and self.impl == "auto" and device.type == "cuda"
        if slow and name not in self.implementations:
            log.warning("dit_sparse: attention runs on the slow torch kernel: %s", why)
        self.implementations[name] = why

    def _count(self, part: int, layer: int) -> int:
        """Return how many calls of a layer came before in this call of its transformer."""
        count = self.counts.get((part, layer), 0)
        self.counts[part, layer] = count + 1
        return count

    def _groups(
        self, q: Tensor, k: Tensor, of: Sequence, part: int, mask: Tensor | None, causal: bool
    ) -> tuple[tuple[Group, ...], str]:
        """Return which samples and tokens the method sees, and why it cannot see any, or ""."""
        kind = self.parts[part].adapter.mask
        reason = of.why_not(q.shape[1], k.shape[1], mask is not None)
        reason = "the method is dense" if isinstance(self.method.compute, Dense) else reason
        reason = "causal attention" if causal else reason
        if mask is not None and kind == "none":
            reason = "an attention mask, which no method honours"
        if reason:
            return (), reason
        # what a mask says is read once per transformer call, for all of its layers
        key = (of, q.device, None if mask is None else tuple(mask.shape))
        if key not in self.groups:
            valid = None if mask is None else valid_tokens(mask, kind, of.before)
            odd = mask is not None and valid is None
            found = "a mask that says more than which tokens are valid"
            self.groups[key] = found if odd else groups(of, valid, q.device)
        found = self.groups[key]
        return ((), found) if isinstance(found, str) else (found, "")

    def _check(self, part: int, heads: int, steps: int, grid: Grid) -> None:
        """Raise where the method does not fit, before a dense first step and once per setting."""
        setting = (part, heads, steps, grid)
        if setting not in self.checked:
            self.method.check(len(self.parts[part].dense), heads, steps, grid)
            self.checked.add(setting)

    def _size(self, part: int, tokens: int, width: int) -> None:
        """Note how long the sequences are; tell once what a method that nobody named can gain."""
        self.parts[part].size = max(self.parts[part].size, (tokens, width))
        if self.unnamed:
            gain = told(self.parts[part].share())
            log.warning("dit_sparse: no method was named; %s. Here %s", self.unnamed, gain)
            self.unnamed = ""

    def _why_dense(self, part: int, layer: int, step: int, steps: int) -> str:
        """Return why the schedule or the guard makes a call dense, "" when they do not."""
        schedule = self.method.schedule
        if schedule.at(layer, step, steps) == "dense":
            early = step < schedule.first_sparse_step(steps)
            return "schedule: a dense first step" if early else "schedule: a dense layer"
        return "" if self.guard is None else self.guard.why_dense(part, layer)

    def _look_back(self) -> None:
        """Read what the sparse calls since the last look left on the device."""
        self._stop_if_broken()
        if self.guard is not None:
            self.guard.judge()

    def _stop_if_broken(self) -> None:
        """Raise when a sparse call since the last look gave numbers that are not finite.

        Waits for the device, so it is asked once per step.
        """
        seen, self.seen = self.seen, []
        if not seen:
            return
        finite = torch.stack([torch.stack(pair) for _, *pair in seen]).isfinite().tolist()
        for (at, *_), (before, after) in zip(seen, finite, strict=True):
            if not after:
                whose = (
                    f"{self.label} made them from finite v; try impl='torch', another dtype, or "
                    "dit_sparse.disable(model)"
                    if before
                    else "v was so already when the layer got it, so the model itself or its dtype "
                    "is the cause"
                )
                raise BrokenOutputError(
                    f"layer {at.layer} of {self.parts[at.part].name} gave NaN or infinite values "
                    f"at step {at.step}: {whose}"
                )

    def end(self) -> None:
        """Free the state; the next call starts a new generation."""
        self.clock.ended = True
        self.states.clear()
        self._look_back()

    def guarded(self) -> Guarded | None:
        """Return what the guard saw, None when it is off; waits for the device."""
        return None if self.guard is None else self.guard.told([part.name for part in self.parts])

    def cells(self, step: int | None = None) -> tuple[Cell, ...]:
        """Return what was counted, for one step or all; waits for the device."""
        return tuple(
            tally.cell(self.parts[part].name, layer, at)
            for (part, layer, at), tally in sorted(self.tallies.items())
            if step is None or at == step
        )

    def progress(self) -> Progress:
        """Return the newest step and its density so far."""
        cells = self.cells(self.clock.step)
        calls = sum(cell.calls for cell in cells)
        density = sum(cell.density * cell.calls for cell in cells) / calls if calls else None
        return Progress(self.clock.step, self.clock.steps, density)
