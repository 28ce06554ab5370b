"""Parameters that cannot work in a model, told before its first call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

from dit_sparse.errors import ArgumentError
from dit_sparse.tokens import Grid


@dataclass(frozen=True)
class Known:
    """What is known of the sparse calls to come before their tensors are; None = not yet.

    layers: the numbers of the layers that are ever sparse. heads: of the queries. steps: the sparse
    ones, up to the last of a generation: `steps.stop` is the number of all. causal: whether queries
    see the past alone.
    """

    layers: tuple[int, ...]
    heads: int | None = None
    steps: range | None = None
    grid: Grid | None = None
    causal: bool | None = None


@runtime_checkable
class Checked(Protocol):
    """A stage, or a part of one, with parameters that do not fit every model, grid or length."""

    def check(self, known: Known) -> None:
        """Raise what a call would raise later, as far as it follows from what is known."""


def causal_only(causal: bool | None, why: str) -> None:
    """Raise where queries see more than the past."""
    if causal is False:
        where = "causal attention alone: causal=True, or a language model"
        raise ArgumentError(f"causal=False: {why}; for {where}")


def check(stage: Any, known: Known) -> None:
    """Ask a stage and all parts of it that are `Checked`."""
    for part in _parts(stage):
        if isinstance(part, Checked):
            part.check(known)


def _parts(value: Any) -> Iterator[Any]:
    """Yield a value and, when it is a dataclass, the parts of its fields."""
    yield value
    if is_dataclass(value):
        for part in fields(value):
            yield from _parts(getattr(value, part.name))
