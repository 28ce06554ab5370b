"""The method registry: one file in `methods/` = one name."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError, UnknownNameError
from dit_sparse.parameters import as_tuples, like


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
        signature = inspect.signature(self.build)
        return {name: p.default for name, p in signature.parameters.items()}


_entries: dict[str, Entry] = {}


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


def methods() -> list[str]:
    """Return the sorted names of all methods."""
    package = importlib.import_module("dit_sparse.methods")
    shipped = {module.name for module in pkgutil.iter_modules(package.__path__)}
    return sorted(shipped | set(_entries))


def entry(name: str) -> Entry:
    """Return the registered entry of a name; unknown names list the nearest."""
    if name not in _entries:
        if name not in methods():
            near = difflib.get_close_matches(name, methods(), n=3, cutoff=0.4) or methods()
            raise UnknownNameError(f"method={name!r} is not known; nearest: {', '.join(near)}")
        importlib.import_module(f"dit_sparse.methods.{name}")
    return _entries[name]


def get(name: str, **params: Any) -> Method:
    """Build a method by name: `get("pisa", keep=0.15)`."""
    found = entry(name)
    unknown = sorted(set(params) - set(found.parameters))
    if unknown:
        known = ", ".join(f"{k}={v!r}" for k, v in found.parameters.items()) or "none"
        raise ArgumentError(f"method {name!r} has no parameter {unknown[0]!r}; it takes: {known}")
    for key, value in params.items():
        params[key], default = as_tuples(value), found.parameters[key]
        if not like(params[key], default):
            raise ArgumentError(f"{key}={value!r}: method {name!r} needs a value like {default!r}")
    return found.build(**params)
