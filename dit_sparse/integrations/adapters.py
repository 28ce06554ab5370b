"""What the seam must know of a transformer class: what attends, and what its tokens mean."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from dit_sparse.core import Grid
from dit_sparse.errors import UnsupportedModelError

# frames, height, width, text: token counts, read from shapes alone so that it can be traced
Sizes = tuple[int, int, int, int]


@dataclass(frozen=True)
class Adapter:
    """One transformer family, as data; rows stand in `pipelines/`, in a tuple named `ADAPTERS`.

    classes: class names; subclasses inherit. attention: pattern of the whole path of a
    self-attention module; layers are counted in module order. exclude: pattern of paths to leave.
    sizes: (module, arguments of its forward) -> frames, height, width, text. ids: the argument
    that holds token positions [S, 3] = (frame, row, column), which then decide frames, height and
    width. text: where joint text tokens stand. timestep: the argument that tells the step.
    needs: first diffusers version that works.
    """

    classes: tuple[str, ...]
    attention: str
    sizes: Callable[[Any, Mapping[str, Any]], Sizes]
    exclude: str | None = None
    ids: str | None = None
    text: Literal["none", "prefix", "suffix"] = "none"
    timestep: str = "timestep"
    needs: str = "0.35.0"

    def layers(self, module: nn.Module) -> list[Any]:
        """Return the self-attention modules, in order."""
        exclude = re.compile(self.exclude or r"(?!)")
        found = []
        for path, child in module.named_modules():
            if re.fullmatch(self.attention, path) and not exclude.fullmatch(path):
                found.append(child)
        return found

    @staticmethod
    def heads(layers: list[Any]) -> int | None:
        """Return the query heads of self-attention modules, None unless all tell the same."""
        told = {getattr(layer, "heads", None) for layer in layers}
        return told.pop() if len(told) == 1 else None

    def grid(self, frames: int, height: int, width: int, text: int) -> Grid:
        """Return the grid of these sizes."""
        return Grid(frames, height, width, text, text_first=self.text == "prefix" and text > 0)


def adapters() -> dict[str, Adapter]:
    """Return the adapter of every supported transformer class name.

    Rows are found by looking into the folder `pipelines/`: a new family is one new file.
    """
    return {name: row for module in families() for row in module.ADAPTERS for name in row.classes}


@functools.cache
def families() -> tuple[Any, ...]:
    """Return the modules of `dit_sparse.pipelines` that declare adapters."""
    package = importlib.import_module("dit_sparse.pipelines")
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"dit_sparse.pipelines.{n}") for n in names if n[0] != "_"]
    return tuple(module for module in modules if hasattr(module, "ADAPTERS"))


def find(module: nn.Module, whole: Any) -> Adapter:
    """Return the adapter of a transformer, by the names of its class and base classes."""
    rows = adapters()
    for base in type(module).__mro__:
        if base.__name__ in rows:
            return rows[base.__name__]
    raise unsupported(whole, f"its transformer is a {type(module).__name__}; ")


def unsupported(model: Any, why: str = "") -> UnsupportedModelError:
    """Return the error that names the class and what is supported."""
    return UnsupportedModelError(
        f"{type(model).__name__} is not supported: {why}supported transformers: "
        f"{', '.join(sorted(adapters()))}"
    )


def box(ids: Tensor) -> tuple[int, int, int] | None:
    """Return (frames, height, width) of token positions [S, 3] in raster order, else None.

    Only equality with the first token is used: large positions are inexact in bfloat16.
    """
    ids = ids[0] if ids.ndim == 3 else ids
    if ids.ndim != 2 or ids.shape[1] != 3 or not ids.shape[0]:
        return None
    frame, row, column = (ids == ids[0]).cpu().unbind(1)
    width, height = int((frame & row).sum()), int((frame & column).sum())
    frames = int((row & column).sum())
    raster = frames * height * width == len(ids)
    raster = raster and bool(row.view(frames, height, width)[:, 0].all())
    raster = raster and bool(column.view(frames, height, width)[:, :, 0].all())
    return (frames, height, width) if raster and bool(frame[: height * width].all()) else None
