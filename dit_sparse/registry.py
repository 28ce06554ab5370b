"""The method registry: one file in `methods/`, or one entry point elsewhere = one name."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dit_sparse import plugins
from dit_sparse.core import Method
from dit_sparse.errors import UnknownNameError
from dit_sparse.parameters import checked

_entries: dict[str, Entry] = {}


@dataclass(frozen=True)
class Entry:
    """A registered method: how to build it, its paper, and the properties it declares to miss."""

    name: str
    build: Callable[..., Method]
    arxiv: str | None = None
    code: str | None = None
    xfail: Mapping[str, str] = field(default_factory=dict)

    @property
    def doc(self) -> str:
        """The docstring of the method's file: the algorithm box."""
        return inspect.getdoc(inspect.getmodule(self.build)) or ""

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters and their defaults, read from the function's signature."""
        return {n: p.default for n, p in inspect.signature(self.build).parameters.items()}


def register(
    name: str,
    *,
    arxiv: str | None = None,
    code: str | None = None,
    xfail: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Register the function that builds a method; its signature is the method's configuration.

    xfail: conformance properties that the method misses by its nature, with the reason of each.
    """

    def add(build: Callable[..., Method]) -> Callable[..., Method]:
        _entries[name] = Entry(name, build, arxiv, code, dict(xfail or {}))
        return build

    return add


@functools.cache
def _ours() -> frozenset[str]:
    """Return the methods with a file of ours."""
    path = importlib.import_module("dit_sparse.methods").__path__
    return frozenset(module.name for module in pkgutil.iter_modules(path))


def methods() -> list[str]:
    """Return the sorted names of all methods."""
    return sorted(_ours() | plugins.loaded(_entries, besides=_ours()) | _entries.keys())


def entry(name: str) -> Entry:
    """Return the registered entry of a name; unknown names list the nearest."""
    if name not in _entries and name in _ours():
        importlib.import_module(f"dit_sparse.methods.{name}")
    elif name not in _entries and name in plugins.modules():
        plugins.load(name, _entries)
    if name not in _entries:
        near = difflib.get_close_matches(name, methods(), n=3, cutoff=0.4) or methods()
        raise UnknownNameError(f"method={name!r} is not known; nearest: {', '.join(near)}")
    return _entries[name]


def get(name: str, **params: Any) -> Method:
    """Build a method by name: `get("pisa", keep=0.15)`."""
    found = entry(name)
    return found.build(**checked(name, params, found.parameters))
