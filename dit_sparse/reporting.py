"""Where a generation was sparse, at what density, and what stayed dense and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

COLUMNS, ROWS = 7, 12  # what a terminal of 80 columns shows well


@dataclass(frozen=True)
class Cell:
    """All calls of one self-attention layer at one step.

    density: mean share of exact query-key pairs, a dense call counting 1. reasons: how many calls
    were dense, by reason.
    """

    transformer: str
    layer: int
    step: int
    calls: int
    sparse: int
    density: float
    reasons: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Tally:
    """The calls of one layer at one step; densities stay on the device until a report is read."""

    calls: int = 0
    densities: list[Tensor] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def cell(self, transformer: str, layer: int, step: int) -> Cell:
        """Return what was counted; waits for the device."""
        told = len(self.densities)
        total = float(torch.stack(self.densities).sum()) if told else 0.0
        density = (total + self.calls - told) / self.calls
        sparse = self.calls - sum(self.reasons.values())
        return Cell(transformer, layer, step, self.calls, sparse, density, dict(self.reasons))


@dataclass(frozen=True)
class Progress:
    """Where the running generation is; density of its newest step, None before the first call."""

    step: int
    steps: int
    density: float | None


@dataclass(frozen=True)
class Event:
    """A layer that the guard made dense after a step, for the rest of the generation.

    estimate: relative error of its output at that step, from sampled rows; above `bound`.
    """

    transformer: str
    layer: int
    step: int
    estimate: float
    bound: float


@dataclass(frozen=True)
class Guarded:
    """What the guard saw in a generation.

    bound: the largest relative error allowed. looks: calls it looked at. worst: the largest
    estimate of a layer at a step.
    """

    bound: float
    looks: int
    worst: float
    events: tuple[Event, ...] = ()

    def notes(self) -> list[str]:
        """Return a line for each step after which layers of a transformer are dense."""
        found: dict[tuple[str, int], list[Event]] = {}
        for event in self.events:
            found.setdefault((event.transformer, event.step), []).append(event)
        lines = []
        for (name, step), events in found.items():
            layers = ", ".join(str(event.layer) for event in events)
            worst = max(event.estimate for event in events)
            many = len(events) > 1
            lines.append(
                f"guard: layer{'s' * many} {layers} of {name} {'are' if many else 'is'} dense "
                f"after step {step}: error {'up to ' * many}{worst:.3g}, bound {self.bound:g}"
            )
        return lines


@dataclass(frozen=True)
class Report:
    """What the last generation of an enabled model did.

    model: class name. method: registered name, or the method's repr. steps: of the generation, 0
    when unknown. layers: self-attention layers of each transformer. implementations: kernel
    implementations that ran, with the reason of the choice. guard: None when off. share: of
    self-attention in the arithmetic of a step, None before the first call.
    """

    model: str
    method: str
    enabled: bool = True
    steps: int = 0
    layers: Mapping[str, int] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    implementations: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    guard: Guarded | None = None
    share: float | None = None

    @property
    def calls(self) -> int:
        """Number of self-attention calls."""
        return sum(cell.calls for cell in self.cells)

    @property
    def sparse_calls(self) -> int:
        """Number of calls that ran the method."""
        return sum(cell.sparse for cell in self.cells)

    @property
    def density(self) -> float:
        """Mean share of exact query-key pairs over all calls, 1.0 without any."""
        return _density(self.cells)

    @property
    def reasons(self) -> dict[str, int]:
        """How many calls were dense, by reason, most frequent first."""
        total: Counter[str] = Counter()
        for cell in self.cells:
            total.update(cell.reasons)
        return dict(total.most_common())

    @property
    def progress(self) -> Progress:
        """The newest step and its density."""
        step = max((cell.step for cell in self.cells), default=-1)
        newest = [cell for cell in self.cells if cell.step == step]
        return Progress(step, self.steps, _density(newest) if newest else None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        sums = {"calls": self.calls, "sparse_calls": self.sparse_calls, "density": self.density}
        return {**asdict(self), **sums, "reasons": self.reasons}

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=80, no_color=True, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        state = "" if self.enabled else " (disabled)"
        share = 100 * self.sparse_calls / max(self.calls, 1)
        yield Text(f"{self.method} on {self.model}{state}", style="bold")
        yield Text(f"density {self.density:.3f}; {share:.0f} % of {self.calls} calls sparse")
        for name in sorted({cell.transformer for cell in self.cells}):
            cells = [cell for cell in self.cells if cell.transformer == name]
            steps, layers = _ranges(cells, "step", COLUMNS), _ranges(cells, "layer", ROWS)
            yield Text(f"{name}, density by layer (rows) and step (columns):")
            table = Table(box=SIMPLE_HEAD)
            table.add_column("layer")
            for chosen in steps:
                table.add_column(_label(chosen), justify="right")
            for rows in layers:
                box = [[c for c in cells if c.layer in rows and c.step in at] for at in steps]
                table.add_row(_label(rows), *map(_show, box))
            yield table
        for reason, count in self.reasons.items():
            yield Text(f"dense: {count} calls, {reason}")
        for name, reason in self.implementations.items():
            yield Text(f"kernel: {name} ({reason})")
        if self.guard is not None:
            seen, worst, bound = self.guard.looks, self.guard.worst, self.guard.bound
            yield Text(f"guard: {seen} calls looked at, largest error {worst:.3g}, bound {bound:g}")
        for note in self.notes:
            yield Text(f"note: {note}", style="yellow")


def _density(cells: Iterable[Cell]) -> float:
    """Return the mean density over the calls of some cells."""
    cells = list(cells)
    calls = sum(cell.calls for cell in cells)
    return sum(cell.density * cell.calls for cell in cells) / calls if calls else 1.0


def _show(cells: list[Cell]) -> str:
    """Return the text of one table cell."""
    if not cells:
        return "-"
    return f"{_density(cells):.3f}" if any(cell.sparse for cell in cells) else "dense"


def _label(numbers: list[int]) -> str:
    """Return a range of consecutive numbers as text."""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _ranges(cells: list[Cell], axis: str, most: int) -> list[list[int]]:
    """Cut the layers or steps of some cells into at most `most` ranges.

    Neighbours whose calls were sparse at the same places share a range; spare ranges halve the
    longest.
    """
    places: dict[int, set[Any]] = {}
    for cell in cells:
        places.setdefault(getattr(cell, axis), set()).add(
            (cell.step if axis == "layer" else cell.layer, cell.sparse > 0)
        )
    numbers = sorted(places)
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][-1] == number - 1 and places[number - 1] == places[number]:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    if len(ranges) > most:
        size = -(-len(numbers) // most)
        return [numbers[at : at + size] for at in range(0, len(numbers), size)]
    while len(ranges) < most and max(map(len, ranges)) > 1:
        at = max(range(len(ranges)), key=lambda i: len(ranges[i]))
        half = -(-len(ranges[at]) // 2)
        ranges[at : at + 1] = [ranges[at][:half], ranges[at][half:]]
    return ranges
