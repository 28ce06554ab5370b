"""A result as a picture: likeness against time and against density, the Pareto front drawn."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dit_sparse.bench.plot import COLOURS, GREY
from dit_sparse.media import part_file, publish
from dit_sparse.quality.results import Result, Row

MARKERS = "osD^v<>PX*"


def missing() -> str:
    """Return why no picture can be drawn here, "" when it can."""
    if find_spec("matplotlib") is None:
        return "no plot: it needs matplotlib: pip install 'dit-sparse[plot]'"
    return ""


def write(result: Result, path: Path) -> None:
    """Draw PSNR against time and against density; the file appears when it is whole."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, result, "seconds", "denoising, seconds")
    front = [(result.mean(row, "seconds"), result.mean(row, "psnr")) for row in result.front()]
    x, y = [a.value for a, _ in front if a], [b.value for _, b in front if b]
    left.step(x, y, where="post", color="#222222", lw=1, ls="--", label="Pareto front", zorder=1)
    dense = result.mean(result.dense, "seconds")
    if dense is not None:
        left.axvline(dense.value, color=GREY, lw=1, label="dense")
    _draw(right, result, "density", "measured density of the sparse calls")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7, frameon=False)
    videos, prompts = len(result.videos), len({prompt for prompt, _ in result.videos})
    figure.suptitle(
        f"{result.settings.get('model', '')} on {result.machine['device']}: {videos} videos of "
        f"{prompts} prompts, bars: 95 % intervals", fontsize=10,
    )  # fmt: skip
    with part_file(path) as part:
        figure.savefig(part, dpi=160)
        publish(part, path, overwrite=True)


def _draw(place: Any, result: Result, cost: str, title: str) -> None:
    """Draw one point for each case, those of one series joined."""
    series: dict[str, list[Row]] = {}
    for row in result.sparse:
        series.setdefault(row.series, []).append(row)
    looks = itertools.product(MARKERS, COLOURS)
    for (marker, colour), (label, rows) in zip(looks, series.items(), strict=False):
        points = [(result.mean(row, cost), result.mean(row, "psnr")) for row in rows]
        points = sorted((a.value, b.value, b.half or 0.0) for a, b in points if a and b)
        if points:
            x, y, wide = zip(*points, strict=True)
            place.errorbar(x, y, wide, color=colour, marker=marker, markersize=4, lw=0.8,
                           elinewidth=0.6, label=label)  # fmt: skip
    place.set(xlabel=title, ylabel="PSNR against dense, dB")
    place.spines[["top", "right"]].set_visible(False)
    place.tick_params(labelsize=8)
    place.grid(True, lw=0.3, color="#dddddd")
