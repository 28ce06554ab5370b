"""What the seam must know of a transformer class: what attends, and what its tokens mean."""

from __future__ import annotations

import difflib
import functools
import importlib
import itertools
import math
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from dit_sparse.errors import UnsupportedModelError
from dit_sparse.integrations.capture import Instead

# frames, height, width, extra tokens before and after them: the fields of a `Sequence`, read from
# shapes alone so that it can be traced
Sizes = tuple[int, int, int, int, int]


# the names that pipelines have for their transformers
COMPONENTS = ("transformer", "transformer_2", "unconditional_transformer")


@dataclass(frozen=True)
class Adapter:
    """One transformer family, as data; rows stand in `pipelines/`, in a tuple named `ADAPTERS`.

    classes: class names; subclasses inherit. attention: pattern of the whole path of a
    self-attention module; layers are counted in module order. exclude: pattern of paths to leave.
    kind: pattern of the class name of such a module, where others have such paths as well.
    sizes: (module, arguments of its forward) -> frames, height, width, extra tokens before and
    after them (REST: those that a call has left). ids: the argument that holds token positions
    [S, 3 or more] = (frame, row, column, ...), or arguments -> positions or None: those of `sizes`
    at their end, or all tokens where `before` is REST; they then decide frames, height, width, and
    what is outside the box.
    mask: what a mask given to self-attention means: "keys", tokens that are left, the same in all
    layers of a call; "pairs" [B, 1, S, S], pairs of such tokens, or of those of one segment;
    "flags", such pairs also as 1 and 0; with "none" a call with a mask stays dense. calls: which
    calls a layer makes beside those about all tokens: "box", about the box alone; "two boxes",
    about two of them, one behind the other; "text", causal ones of text among itself, which nobody
    counts. instead: functions of PyTorch that the processor calls, each with what it calls in its
    place while enabled: `ATTENTION` where it does not ask for a backend in every call (where it
    never does, that is seen). unset: arguments that are None to the forward while enabled.
    timestep: the argument that tells the step. text: where joint text tokens stand, for people.
    needs: first diffusers version that works. note: what to know, for people.
    """

    classes: tuple[str, ...]
    attention: str
    sizes: Callable[[Any, Mapping[str, Any]], Sizes]
    exclude: str | None = None
    kind: str = ".*"
    ids: str | Callable[[Mapping[str, Any]], Tensor | None] | None = None
    mask: Literal["none", "keys", "pairs", "flags"] = "none"
    calls: tuple[Literal["box", "two boxes", "text"], ...] = ()
    instead: tuple[Instead, ...] = ()
    unset: tuple[str, ...] = ()
    timestep: str = "timestep"
    text: Literal["none", "prefix", "suffix", "packed"] = "none"
    needs: str = "0.35.0"
    note: str = ""

    def layers(self, module: nn.Module) -> list[Any]:
        """Return the self-attention modules, in order."""
        exclude = re.compile(self.exclude or r"(?!)")
        found = []
        for path, child in module.named_modules():
            named = re.fullmatch(self.attention, path) and not exclude.fullmatch(path)
            if named and re.fullmatch(self.kind, type(child).__name__):
                found.append(child)
        return found

    def positions(self, given: Mapping[str, Any]) -> Tensor | None:
        """Return the positions of tokens among the arguments of a forward, where there are any."""
        if callable(self.ids):
            return self.ids(given)
        return None if self.ids is None else given.get(self.ids)

    @staticmethod
    def heads(layers: list[Any]) -> int | None:
        """Return the query heads of self-attention modules, None unless all tell the same."""
        told = {getattr(layer, "heads", None) for layer in layers}
        return told.pop() if len(told) == 1 else None


def adapters() -> dict[str, Adapter]:
    """Return the adapter of every supported transformer class name.

    Rows are found by looking into the folder `pipelines/`: a new family is one new file.
    """
    return {name: row for module in families() for row in module.ADAPTERS for name in row.classes}


def refused() -> dict[str, str]:
    """Return why each transformer class that we know and do not support is left alone."""
    return {name: why for module in families() for name, why in _of(module, "REFUSED").items()}


def _of(module: Any, name: str) -> dict[str, Any]:
    return getattr(module, name, {})


@functools.cache
def families() -> tuple[Any, ...]:
    """Return the modules of `dit_sparse.pipelines` that declare adapters."""
    package = importlib.import_module("dit_sparse.pipelines")
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"dit_sparse.pipelines.{n}") for n in names if n[0] != "_"]
    return tuple(module for module in modules if hasattr(module, "ADAPTERS"))


def find(module: nn.Module, whole: Any) -> Adapter:
    """Return the adapter of a transformer, by the names of its class and base classes."""
    rows, reasons = adapters(), refused()
    for base in type(module).__mro__:
        if base.__name__ in rows:
            return rows[base.__name__]
        if base.__name__ in reasons:
            raise UnsupportedModelError(f"{base.__name__}: {reasons[base.__name__]}")
    raise unsupported(whole, f"its transformer is a {type(module).__name__}; ")


def unsupported(model: Any, why: str = "") -> UnsupportedModelError:
    """Return the error that names the class and what is supported."""
    name = type(model).__name__
    near = difflib.get_close_matches(name, sorted(adapters()), n=3, cutoff=0)
    return UnsupportedModelError(
        f"{name} is not supported: {why}nearest of {len(adapters())} supported transformers: "
        f"{', '.join(near)}; `dit-sparse models` lists all"
    )


def joined(shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int, int]:
    """Return the box of the leading pictures of one size, and the number of tokens behind it.

    shapes: frames, height, width of every picture.
    """
    _, height, width = shapes[0]
    alike = itertools.takewhile(lambda shape: shape[1:] == (height, width), shapes)
    frames = sum(shape[0] for shape in alike)
    total = sum(math.prod(shape) for shape in shapes)
    return frames, height, width, total - frames * height * width


def box(ids: Tensor) -> tuple[int, int, int, int] | None:
    """Return the box at the head of token positions and the number of tokens behind it, or None.

    ids: [S, 3 or more] = (frame, row, column, ...), in raster order. A line with other tokens
    behind is no box. Only equality is used: large positions are inexact in bfloat16.
    """
    ids = ids[0] if ids.ndim == 3 else ids
    if ids.ndim != 2 or ids.shape[1] < 3 or not ids.shape[0]:
        return None
    places = ids[:, :3].cpu()
    width = _run((places[:, :2] == places[0, :2]).all(1))
    lines = _cut(places, width)
    along = (lines[..., :2] == lines[:, :1, :2]).all(2) & (lines[..., 2] == lines[0, :, 2])
    height = _run(along.all(1) & (lines[:, 0, 0] == places[0, 0]))
    planes = _cut(places, height * width)
    same = (planes[..., 0] == planes[:, :1, 0]) & (planes[..., 1:] == planes[0, :, 1:]).all(2)
    frames = _run(same.all(1))
    rest = len(places) - frames * height * width
    return None if rest and min(height, width) == 1 else (frames, height, width, rest)


def _cut(places: Tensor, size: int) -> Tensor:
    """Return the whole pieces [n, size, 3] of [S, 3]."""
    return places[: len(places) // size * size].view(-1, size, 3)


def _run(true: Tensor) -> int:
    """Return how many lead in a bool [n] before the first that is False."""
    return int(true.long().cumprod(0).sum())
