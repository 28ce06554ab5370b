"""What the tab "Look inside" shows: one generation that was looked into, and its pictures as HTML.

    recording = record(model, request, bar)             # runs the pipeline once
    view = recording.view(layer, head, step, (4, 8, 8)) # from then on, any head and patch at once
    places(view, recording.frames), maps(view, "video"), numbers(view, recording.rest)

Attention is measured and drawn by `dit_sparse.inspection`; here it is kept and put on a page.
"""

from __future__ import annotations

import base64
import html
import io
import threading
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from dit_sparse.commands.attention import choose
from dit_sparse.commands.inspecting import sparse_places
from dit_sparse.commands.loading import Loaded
from dit_sparse.commands.request import Request
from dit_sparse.commands.sampling import RunError, sample
from dit_sparse.core import QKV, Blocks, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.inspection import draw, page
from dit_sparse.inspection.capture import Camera, Patch, View, Where, default_patches
from dit_sparse.integrations.session import Call
from dit_sparse.media import to_uint8
from dit_sparse.quality.watch import watching

STEPS = 3  # early, in the middle, late
BYTES = 256 << 20  # of the calls of one recording
RECORDINGS = 3  # kept for all visitors together
ORDERS = {"frame by frame": "video", "in the method's own order": "own"}
# what the remainder of a method does with the pairs that are not kept
REST = {"Drop": "left out", "Centroid": "stood for by block averages", "Pooled": "pooled",
        "Taylor": "approximated by a Taylor series", "Linear": "covered by linear attention",
        "Reuse": "taken from an earlier step"}  # fmt: skip


@dataclass
class Recording:
    """One generation: its video, and some of its sparse calls on the CPU.

    label: the method with its settings. frames: [N, H, W, 3] uint8. total: all denoising steps.
    rest: what becomes of the pairs that are not kept. density: over all calls, dense ones too.
    calls: (layer, step) -> call of the prompt.
    """

    label: str
    request: Request
    frames: np.ndarray
    total: int
    rest: str
    density: float
    calls: dict[tuple[int, int], Call]

    @property
    def layers(self) -> list[int]:
        """The layers that were kept."""
        return sorted({layer for layer, _ in self.calls})

    @property
    def steps(self) -> list[int]:
        """The steps that were kept."""
        return sorted({step for _, step in self.calls})

    @property
    def heads(self) -> list[int]:
        """The heads of a layer."""
        return list(range(next(iter(self.calls.values())).x.q.shape[1]))

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
        return self._looked(layer, step, (head,), patch).views[0]

    def heads_table(self, layer: int, head: int, step: int) -> str:
        """Return the numbers of all heads of the kept layers at a step as HTML tables."""
        cameras = [self._looked(n, step, (0,), self.patch) for n in self.layers]
        readings = {place: r for camera in cameras for place, r in camera.readings.items()}
        shown = {replace(cameras[0].views[0], layer=n, head=h).name
                 for n in self.layers for h in self.heads}  # fmt: skip
        now = replace(cameras[0].views[0], layer=layer, head=head).name
        mark = f'data-view="{now}"'
        tables = page.tables(readings, shown).replace(mark, f'{mark} aria-current="true"')
        return f'<div class="paper">{tables}</div>'

    def _looked(self, layer: int, step: int, heads: tuple[int, ...], patch: Patch) -> Camera:
        """Return a camera that saw one call."""
        if (layer, step) not in self.calls:
            raise ArgumentError(f"layer {layer} at step {step} was not kept; look inside again")
        camera = Camera(Where(heads=heads), patches=(patch,))
        camera(self.calls[layer, step])
        return camera


@dataclass
class Keeper:
    """Copies sparse calls of the prompt to the CPU, spread over layers and steps; see `watching`.

    layers, steps: those that are sparse at all. most: bytes of all copies together.
    """

    layers: tuple[int, ...]
    steps: tuple[int, ...]
    most: int = BYTES
    calls: dict[tuple[int, int], Call] = field(default_factory=dict)
    wanted: set[tuple[int, int]] | None = None

    def __call__(self, call: Call) -> None:
        if self.wanted is None:
            size = sum(t[-1].numel() * t.element_size() for t in (*call.x, call.out))
            steps = spread(self.steps, min(STEPS, max(1, self.most // size)))
            layers = spread(self.layers, max(1, self.most // size // len(steps)))
            self.wanted = {(layer, step) for layer in layers for step in steps}
        place = call.layer, call.step
        if call.branch == 0 and place in self.wanted and place not in self.calls:
            self.calls[place] = of_prompt(call)


def spread(some: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return at most so many of some numbers, evenly; of one the middle one."""
    count = min(most, len(some))
    if count == 1:
        return (some[len(some) // 2],)
    return tuple(some[i * (len(some) - 1) // (count - 1)] for i in range(count))


def of_prompt(call: Call) -> Call:
    """Return a copy of a call on the CPU: of the last batch element, which has the prompt."""

    def last(t: Any) -> Any:
        return None if t is None else t[-1:].detach().to("cpu", copy=True)

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
    frames = np.stack([to_uint8(frame) for frame in run.frames])
    rest = getattr(choice.value.compute, "remainder", None)
    rest = REST.get(type(rest).__name__, "treated in the method's own way")
    return Recording(choice.label, request, frames, total, rest, run.density, keeper.calls)


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


def places(view: View, frames: Any = None) -> str:
    """Return what the view's patch looks at and what of it is kept, frame by frame, as HTML.

    Every picture tells its frame of tokens; the element tells the patch and the grid.
    """
    look = view.looks[0]
    count, height, width = look.mass.shape
    frame, row, column = look.patch
    kinds = (
        ("Where this place looks", "red = it looks here", draw.heat, "where the patch looks"),
        ("What the method computes", "bright = exactly, orange tint = pooled, dark = the rest",
         draw.kept, "what the method computes for the patch"),
    )  # fmt: skip
    parts = []
    for title, legend, paint, what in kinds:
        figures = []
        for number in draw.chosen(look):
            picture = paint(look, number, frames)
            alt = f"frame {number}: {what}" + (", the chosen patch outlined" * (number == frame))
            here = ' class="here"' * (number == frame)
            figures.append(
                f'<figure{here}><img tabindex="0" data-frame="{number}" '
                f'src="{data_uri(picture)}" width="{picture.width}" height="{picture.height}" '
                f'alt="{alt}; click or use the arrow keys to choose another patch">'
                f"<figcaption>{number}</figcaption></figure>"
            )
        parts.append(f'<h3>{title} <small>{legend}</small></h3><div class="frames">'
                     f"{''.join(figures)}</div>")  # fmt: skip
    told = f'data-patch="{frame},{row},{column}" data-sides="{count},{height},{width}"'
    return f'<div class="places" {told}>{"".join(parts)}</div>'


def maps(view: View, order: str) -> str:
    """Return the map of attention and of what is kept as HTML; order: "video" or "own"."""
    shown = getattr(view, order)
    cells = (
        (draw.attention(shown), "Attention", "dark = much attention, white = almost none",
         f"attention map of layer {view.layer}, head {view.head}, step {view.step}: rows are the "
         "places that look, columns the places looked at"),
        (draw.choice(shown), "Kept", "blue = exact, orange = pooled, grey = the rest",
         f"the same map: {float(shown.exact.mean()):.0%} of the pairs computed exactly, "
         f"{float(shown.pooled.mean()):.0%} pooled"),
    )  # fmt: skip
    figures = [
        f'<figure><figcaption><b>{title}</b> {legend}</figcaption><img src="{data_uri(picture)}" '
        f'width="{picture.width}" height="{picture.height}" alt="{alt}"></figure>'
        for picture, title, legend, alt in cells
    ]
    return f'<div class="maps">{"".join(figures)}</div>'


def numbers(view: View, rest: str) -> str:
    """Return the share of work, the kept attention and the error of a head as HTML, in words."""
    error, recall, density = view.numbers
    tiles = (
        (density, "of the work", "pairs of places that are computed"),
        (recall, "of the attention", "lies in what is computed exactly"),
        (error, "error", "of this head's output against full attention"),
    )
    found = [
        f"<div><b>{value:.1%}</b> <span>{name}</span><small>{what}</small></div>"
        for value, name, what in tiles
    ]
    text = view.looks[0].text
    more = f" {text:.0%} of this place's attention is on the words of the prompt." if text else ""
    note = f"<p>What is not kept is {html.escape(rest)}.{more}</p>"
    return f'<div class="tiles">{"".join(found)}</div>{note}'


def data_uri(picture: Image.Image) -> str:
    """Return a picture as an address that holds it, a small WebP."""
    file = io.BytesIO()
    picture.save(file, "webp", quality=85, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
