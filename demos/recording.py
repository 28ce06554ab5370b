"""One generation that was looked into: what is kept of its attention, for as long as anyone looks.

    recording = record(model, request, bar)             # runs the pipeline once
    view = recording.view(layer, head, step, (4, 8, 8)) # from then on, any head and patch at once

Attention is measured by `dit_sparse.inspection`; here its calls are kept, within bounds.
"""

from __future__ import annotations

import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dit_sparse.commands.attention import choose
from dit_sparse.commands.inspecting import sparse_places
from dit_sparse.commands.loading import Loaded
from dit_sparse.commands.request import Request
from dit_sparse.commands.sampling import RunError, sample
from dit_sparse.core import QKV, Blocks, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.inspection.capture import Camera, Patch, Reading, View, Where, default_patches
from dit_sparse.inspection.draw import THUMB
from dit_sparse.integrations.session import Call
from dit_sparse.media import to_uint8
from dit_sparse.quality.watch import watching

STEPS = 3  # early, in the middle, late
BYTES = 256 << 20  # of the calls of one recording
RECORDINGS = 3  # kept for all visitors together
# what the remainder of a method does with the pairs that are not kept
REST = {"Drop": "left out", "Centroid": "stood for by block averages", "Pooled": "pooled",
        "Taylor": "approximated by a Taylor series", "Linear": "covered by linear attention",
        "Reuse": "taken from an earlier step"}  # fmt: skip


@dataclass
class Recording:
    """One generation: its video, and some of its sparse calls on the CPU.

    label: the method with its settings. frames: [N, H, W, 3] uint8, no larger than they are drawn.
    total: all denoising steps. rest: what becomes of the pairs that are not kept. density: over all
    calls, dense ones too. calls: (layer, step) -> call of the prompt, of `heads` out of `every`
    head of a layer. readings: of those heads, as far as anyone asked.
    """

    label: str
    request: Request
    frames: np.ndarray
    total: int
    rest: str
    density: float
    calls: dict[tuple[int, int], Call]
    heads: list[int]
    every: int
    readings: dict[tuple[int, int], Reading] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """The layers that were kept."""
        return sorted({layer for layer, _ in self.calls})

    @property
    def steps(self) -> list[int]:
        """The steps that were kept."""
        return sorted({step for _, step in self.calls})

    @property
    def sides(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the patches."""
        grid = next(iter(self.calls.values())).ctx.grid
        assert grid is not None
        return grid.sides

    @property
    def patch(self) -> Patch:
        """A patch to begin with."""
        return default_patches(next(iter(self.calls.values())).ctx.grid)[0]

    def view(self, layer: int, head: int, step: int, patch: Patch) -> View:
        """Look at one head of one call, and at what one patch of the video looks at."""
        if head not in self.heads:
            raise ArgumentError(f"head {head} was not kept; those are {self.heads}")
        call = of_prompt(self._call(layer, step), [self.heads.index(head)])
        return replace(_seen(call, patch).views[0], head=head)

    def reading(self, layer: int, step: int) -> Reading:
        """Return the numbers of the kept heads of a call, measured once."""
        place = layer, step
        if place not in self.readings:
            camera = _seen(self._call(layer, step), self.patch)
            self.readings[place] = next(iter(camera.readings.values()))
        return self.readings[place]

    def _call(self, layer: int, step: int) -> Call:
        if (layer, step) not in self.calls:
            raise ArgumentError(f"layer {layer} at step {step} was not kept; look inside again")
        return self.calls[layer, step]


def _seen(call: Call, patch: Patch) -> Camera:
    """Return a camera that saw one call, and a view of its first head."""
    camera = Camera(Where(heads=(0,)), patches=(patch,))
    camera(call)
    return camera


@dataclass
class Keeper:
    """Copies sparse calls of the prompt to the CPU, spread over layers and steps; see `watching`.

    layers, steps: those that are sparse at all. most: bytes of all copies together; of calls too
    large for it some heads are kept. heads: those, of `every` one.
    """

    layers: tuple[int, ...]
    steps: tuple[int, ...]
    most: int = BYTES
    calls: dict[tuple[int, int], Call] = field(default_factory=dict)
    wanted: set[tuple[int, int]] | None = None
    heads: tuple[int, ...] = ()
    every: int = 0

    def __call__(self, call: Call) -> None:
        if self.wanted is None:
            self._plan(call)
        place = call.layer, call.step
        if call.branch == 0 and place in (self.wanted or ()) and place not in self.calls:
            self.calls[place] = of_prompt(call, list(self.heads))

    def _plan(self, call: Call) -> None:
        """Choose heads, steps and layers by the size of a call."""
        self.every = call.x.q.shape[1]
        head = head_bytes(call)
        if head > self.most:
            raise ArgumentError(
                f"one head of this video takes {head >> 20} MiB, and {self.most >> 20} are the "
                "most that is kept: choose fewer frames or a smaller size"
            )
        self.heads = spread(tuple(range(self.every)), self.most // head)
        calls = self.most // (head * len(self.heads))
        steps = spread(self.steps, min(STEPS, calls))
        layers = spread(self.layers, calls // len(steps))
        self.wanted = {(layer, step) for layer in layers for step in steps}


def head_bytes(call: Call) -> int:
    """Return the bytes of a copy of one head of a call; what heads share counts in full."""
    return sum(t[-1].numel() * t.element_size() // t.shape[1] for t in tensors(call))


def tensors(call: Call) -> list[Tensor]:
    """Return the tensors of a call that are kept, [B, ...] each."""
    plan = call.plan
    orders = (t for side in plan.layout for t in (side.order, side.offsets) if t is not None)
    return [*call.x, call.out, plan.level, *orders]


def spread(some: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return at most so many of some numbers, evenly; of one the middle one."""
    count = min(most, len(some))
    if count == 1:
        return (some[len(some) // 2],)
    return tuple(some[i * (len(some) - 1) // (count - 1)] for i in range(count))


def of_prompt(call: Call, heads: list[int] | None = None) -> Call:
    """Return a copy of some heads of a call on the CPU, of all where `heads` is None.

    It is of the last batch element, which has the prompt.
    """
    count = call.x.q.shape[1]
    heads = list(range(count)) if heads is None else heads

    def last(t: Any) -> Any:
        if t is None:
            return None
        # an axis of size 1 serves all heads, one of groups several each
        held = t.shape[1]
        some = [0] if held == 1 else [head * held // count for head in heads]
        return t[-1:, some].detach().to("cpu", copy=True)

    def side(blocks: Blocks) -> Blocks:
        return replace(blocks, order=last(blocks.order), offsets=last(blocks.offsets))

    layout = Layout(*(side(blocks) for blocks in call.plan.layout))
    plan = replace(call.plan, layout=layout, level=last(call.plan.level))
    # what a method remembers is not looked at
    ctx = replace(call.ctx, state={}, weights={}, cache={})
    x = QKV(*map(last, call.x))
    return call._replace(x=x, plan=plan, out=last(call.out), ctx=ctx)


def record(model: Loaded, request: Request, bar: Any = None) -> Recording:
    """Generate with the method of a request and keep what its attention did.

    A request without a method gets the default one. bar: hears of each step, as of `sample`.
    """
    import dit_sparse

    if request.method == "dense":
        raise ArgumentError("dense attention keeps everything: choose a sparse method to look at")
    # without a method, what a comparison with dense would take
    choice = choose(replace(request, compare=True), model.name)
    assert choice is not None
    dit_sparse.enable(model.pipe, choice.value)
    total = model.arguments.get("num_inference_steps", 50)
    count = max(dit_sparse.report(model.pipe).layers.values())
    keeper = Keeper(*sparse_places(choice.value.schedule, "all", "all", count, total))
    with watching(model.pipe, keeper):
        run = sample(model.pipe, model.call(request.prompt), request.seed, bar)
    if not keeper.calls:
        why = next(iter(run.report.reasons), "no self-attention call arrived")
        raise RunError(f"nothing to show: {why}")
    rest = getattr(choice.value.compute, "remainder", None)
    rest = REST.get(type(rest).__name__, "treated in the method's own way")
    grid = next(iter(keeper.calls.values())).ctx.grid
    frames = np.stack([thumb(frame, grid.height if grid else 1) for frame in run.frames])
    return Recording(choice.label, request, frames, total, rest, run.density, keeper.calls,
                     list(keeper.heads), keeper.every)  # fmt: skip


def thumb(frame: Any, rows: int) -> np.ndarray:
    """Return a frame [H, W, 3] as uint8, no higher than it is drawn over so many rows of tokens."""
    whole = to_uint8(frame)
    height, width = whole.shape[:2]
    high = rows * max(1, -(-THUMB // rows))
    if height <= high:
        return whole
    size = (max(1, round(width * high / height)), high)
    return np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.LANCZOS))


class Shelf:
    """The newest recordings of all visitors, by key; older ones make room."""

    def __init__(self, most: int = RECORDINGS) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Recording] = OrderedDict()

    def put(self, recording: Recording, instead: str | None = None) -> str:
        """Keep a recording, in the place of a visitor's last one, and return its key."""
        key = uuid.uuid4().hex
        with self._lock:
            self._kept.pop(instead or "", None)
            self._kept[key] = recording
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str | None) -> Recording:
        """Return a recording and make it the newest."""
        with self._lock:
            found = self._kept.get(key or "")
            if found is None:
                raise ArgumentError("nothing is recorded here any more: press “Look inside” again")
            self._kept.move_to_end(key or "")
            return found

    def drop(self, key: str | None) -> None:
        """Forget a recording."""
        with self._lock:
            self._kept.pop(key or "", None)
