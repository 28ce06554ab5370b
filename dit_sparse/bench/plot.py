"""A run as a picture: time against density, time or memory against length, or the bars of steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dit_sparse.bench import table
from dit_sparse.bench.results import Result, Row, Shape, exponent
from dit_sparse.errors import ArgumentError, MissingDependencyError
from dit_sparse.media import part_file, publish

FORMATS = (".png", ".svg")
COLOURS = ("#1f5fa8", "#c8502d", "#3f8f4f", "#7a4fa3", "#b08a1e", "#2f9aa0", "#a03a6a", "#6b6b6b")
GREY = "#777777"
# the parts of a method's bar
STACK = {"kept blocks": COLOURS[0], "columns and tail": "#8fb4dc", "all else": COLOURS[1]}


def check_plot(path: Path) -> None:
    """Raise unless a picture of this name can be made here."""
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(f"--plot {path}: use {' or '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "--plot needs matplotlib: pip install 'dit-sparse[plot]', or leave --plot out"
        )


def write(result: Result, path: Path) -> None:
    """Draw a run; the file appears under its name when it is whole."""
    from matplotlib.figure import Figure

    panels = PANELS[result.kind]
    draws = panels(result)
    figure = Figure(figsize=(5.2 * max(1, len(draws)), 4.2), layout="constrained")
    axes = figure.subplots(1, max(1, len(draws)), squeeze=False)[0]
    for place, draw in zip(axes, draws, strict=False):
        draw(place)
        place.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result.machine['device']}, {result.kernel[0]} kernel", fontsize=10)
    with part_file(path) as part:
        figure.savefig(part, dpi=160)
        publish(part, path, overwrite=True)


def _attention(result: Result) -> list[Any]:
    """Return a panel for every shape, but for lengths of one series only the longest and their
    own panel."""
    draws, series = [], list(result.series().values())
    shapes = dict.fromkeys(row.shape for row in result.rows)
    longer = {row.shape for rows in series for row in rows[:-1]}
    for shape in [s for s in shapes if s not in longer]:
        timed = [r for r in result.rows if r.shape == shape and r.sparse and r.ms]
        if timed:
            draws.append(partial(_by_density, result=result, shape=shape, rows=timed))
    if series:
        draws.append(partial(_by_length, result=result))
    return draws


def _by_density(place: Any, result: Result, shape: Shape, rows: list[Row]) -> None:
    """Draw time against density: each label a line, dense and the limits for comparison."""
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: r.density):
        lines.setdefault(row.label, []).append(row)
    for colour, (label, found) in zip(_colours(), lines.items(), strict=False):
        x, y = [r.density for r in found], [r.ms for r in found]
        place.plot(x, y, marker="o", markersize=4, color=colour, label=label)
    dense = result.dense(shape)
    if dense is not None:
        place.axhline(dense.ms, color=GREY, lw=1, label=f"dense, fastest: {dense.what}")
    low = min(r.density for r in rows)
    x = [low * (1 / low) ** (i / 40) for i in range(41)]
    limit = [result.limits.ms(shape, d) for d in x]
    place.plot(x, limit, color=GREY, ls="--", lw=1, label="limit: matmul and copy")
    _dress(place, f"{shape.name}: {shape.describe()}", "density")


def _by_length(
    place: Any, result: Result, what: str = "time", unit: float = 1.0, unit_name: str = "ms"
) -> None:
    """Draw what was measured against length with the fitted exponent of each series."""
    for colour, (key, rows) in zip(_colours(), result.series().items(), strict=False):
        keep = f" {key[2]:.3g}" if key[1] else ""
        label = f"{key[0]}{keep}: tokens^{exponent(rows):.2f}"
        x, y = [r.shape.tokens for r in rows], [(r.amount or 0) / unit for r in rows]
        place.plot(x, y, marker="o", markersize=4, color=colour, label=label,
                   ls="-" if key[1] else ":")  # fmt: skip
    _dress(place, f"{what} against length", "tokens", unit_name)


def _memory(result: Result) -> list[Any]:
    """Return the panel of memory against length."""
    options = {"what": "memory beyond q, k, v", "unit": 2.0**30, "unit_name": "GiB"}
    return [partial(_by_length, result=result, **options)]


def _steps(result: Result) -> list[Any]:
    """Return a panel of bars for every shape: a step each, attention's part of it in colour."""

    def draw(place: Any, rows: list[Row]) -> None:
        for at, row in enumerate(rows):
            share = result.attention(row) or 0.0
            parts = {"": (1 - share, "#d5d5d5"), "attention": (share, COLOURS[0])}
            _bar(place, at, row, [((row.ms or 0.0) * x, colour) for x, colour in parts.values()])
        _label(place, rows, "ms per step (coloured: attention)")

    return _per_shape(result, draw, lambda row: True)


def _stages(result: Result) -> list[Any]:
    """Return a panel of bars for every shape: a method each, its kept blocks, the rest of its
    kernel call, and the other stages."""

    def draw(place: Any, rows: list[Row]) -> None:
        for at, row in enumerate(rows):
            _bar(place, at, row, list(zip(_shares(row), STACK.values(), strict=True)))
        for name, colour in STACK.items():
            place.plot([], [], color=colour, lw=6, label=name)
        dense = result.dense(rows[0].shape)
        told = "" if dense is None else f"; dense: {dense.what} {table.ms(dense.ms)}"
        _label(place, rows, f"ms at keep {rows[0].settings['keep']:g}{told}")
        place.legend(
            fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12)
        )

    return _per_shape(result, draw, lambda row: bool(row.stages))


def _shares(row: Row) -> list[float]:
    """Return the ms of the parts of a method's bar: kept blocks, the kernel's extras, the rest."""
    ms = row.ms or 0.0
    kernel = min(ms, row.stages["kernel"])
    kept = min(kernel, row.stages.get("kept", kernel))
    return [kept, kernel - kept, ms - kernel]


def _per_shape(
    result: Result, draw: Callable[[Any, list[Row]], None], wanted: Callable[[Row], bool]
) -> list[Any]:
    """Return a panel for the timed and wanted rows of every shape."""
    rows: dict[Shape, list[Row]] = {}
    for row in result.rows:
        if row.ms and wanted(row):
            rows.setdefault(row.shape, []).append(row)
    return [partial(_titled, draw=draw, rows=found) for found in rows.values()]


def _titled(place: Any, draw: Callable[[Any, list[Row]], None], rows: list[Row]) -> None:
    draw(place, rows)
    place.set_title(f"{rows[0].shape.name}: {rows[0].shape.describe()}", fontsize=10)


def _bar(place: Any, at: int, row: Row, parts: list[tuple[float, str]]) -> None:
    """Draw one bar of parts from left to right, with its time behind it."""
    left = 0.0
    for ms, colour in parts:
        place.barh(at, ms, left=left, color=colour)
        left += ms
    place.text(left, at, f" {table.ms(left)}", va="center", fontsize=7)


def _label(place: Any, rows: list[Row], axis: str) -> None:
    place.set_yticks(range(len(rows)), [row.what for row in rows], fontsize=7)
    place.invert_yaxis()
    place.set_xlabel(axis, fontsize=8)
    place.tick_params(axis="x", labelsize=8)


def _dress(place: Any, title: str, axis: str, unit: str = "ms") -> None:
    """Make both axes logarithmic, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    place.set(xscale="log", yscale="log", xlabel=axis, ylabel=unit)
    for line in (place.xaxis, place.yaxis):
        line.set_major_locator(LogLocator(subs=(1, 2, 5)))
        line.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
        line.set_minor_formatter(NullFormatter())
    place.set_title(title, fontsize=10)
    place.tick_params(labelsize=8)
    place.grid(True, lw=0.3, color="#dddddd")
    place.legend(fontsize=7, frameon=False)


def _plain(value: float) -> str:
    """Write an axis label as a person would: 0.05, 20, 50k."""
    return f"{value / 1000:g}k" if value >= 10000 else f"{value:g}"


def _colours() -> Iterator[str]:
    return itertools.cycle(COLOURS)


def _methods(result: Result) -> list[Any]:
    """Return bars of stages for one budget, lines over density or length for several."""
    budgets = {row.settings.get("keep") for row in result.rows if row.stages}
    return _attention(result) if len(budgets) > 1 or result.series() else _stages(result)


PANELS = {
    "kernel": _attention,
    "method": _methods,
    "step": _steps,
    "memory": _memory,
    "lm": _attention,
}
