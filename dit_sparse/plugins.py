"""Methods of other packages: those that entry points of the group `dit_sparse.methods` name."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Container
from importlib.metadata import entry_points

from dit_sparse.errors import MissingDependencyError


@functools.cache
def modules() -> dict[str, str]:
    """Return the module that registers each of these methods."""
    return {point.name: point.module for point in entry_points(group="dit_sparse.methods")}


@functools.cache
def _broken(module: str) -> str:
    """Return why a module cannot be imported, "" where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a package of somebody else may raise anything
        return f"{module} cannot be imported ({type(error).__name__}: {error})"
    return ""


def load(name: str, registered: Container[str]) -> None:
    """Import the module of a method; raise unless that registers it."""
    module = modules()[name]
    why = _broken(module) or ("" if name in registered else f"{module} does not register it")
    if why:
        raise MissingDependencyError(f"method={name!r} cannot be had: {why}")


def loaded(registered: Container[str], besides: frozenset[str]) -> set[str]:
    """Return the methods, besides those, that can be had; of each other a warning."""
    found = modules().keys() - besides
    for name in sorted(found):
        try:
            load(name, registered)
        except MissingDependencyError as error:
            warnings.warn(f"{error}; it is left out", stacklevel=3)
            found.remove(name)
    return found
