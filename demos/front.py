"""The Pareto front of an evaluation as HTML.

Every setting is a button, so that keys and screen readers reach it; text keeps its size at any
width.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from dit_sparse.demos import chart
from dit_sparse.quality.results import Result, Row

COSTS = {"time": ("seconds", "denoising, seconds", "{:.2f} s"),
         "share of attention": ("density", "share of attention computed", "{:.0%}")}  # fmt: skip
GAINS = {"PSNR": ("psnr", "PSNR against dense, dB", "{:.1f} dB"),
         "SSIM": ("ssim", "SSIM against dense", "{:.3f}")}  # fmt: skip
TICKS = 5


@dataclass(frozen=True)
class Point:
    """A setting in the plot; half: half the 95 % interval of y, 0 without one."""

    row: Row
    x: float
    y: float
    half: float
    front: bool


def cost_of(result: Result | None) -> str:
    """Return the first cost that was measured, by its title."""
    measured = (
        title for title, (metric, *_) in COSTS.items()
        if result is not None and any(result.mean(row, metric) for row in result.sparse)
    )  # fmt: skip
    return next(measured, next(iter(COSTS)))


def points(result: Result, cost: str, gain: str, shown: list[str]) -> list[Point]:
    """Return the settings of some methods, by their titles in `COSTS` and `GAINS`."""
    metrics = COSTS[cost][0], GAINS[gain][0]
    front = {row.label for row in result.front(metrics[1], metrics[0])}
    found = []
    for row in result.sparse:
        x, y = (result.mean(row, metric) for metric in metrics)
        if x is not None and y is not None and row.facts["method"] in shown:
            found.append(Point(row, x.value, y.value, y.half or 0.0, row.label in front))
    return found


def colour(number: int, count: int) -> str:
    """Return the colour of one of so many methods: even hues, neighbours apart in lightness."""
    return f"hsl({360 * number / count:.0f} {(70, 55)[number % 2]}% {(58, 38)[number % 2]}%)"


def ticks(low: float, high: float, most: int = TICKS) -> list[float]:
    """Return round numbers from one value to another, 2 to `most` + 1 of them."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * n for n in (1, 2, 5, 10) if power * n * most >= span)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def picture(
    result: Result, cost: str, gain: str, shown: list[str], chosen: str | None = None
) -> str:
    """Return the plot. chosen: the label of the setting that is marked."""
    every = points(result, cost, gain, [row.facts["method"] for row in result.sparse])
    some = [point for point in every if point.row.facts["method"] in shown]
    if not every:
        return chart.empty(f"The {cost} was not measured here: take another cost or likeness.")
    if not some:
        return chart.empty("No method is chosen.")
    (metric, across, form), (_, up, tall) = COSTS[cost], GAINS[gain]
    dense = result.mean(result.dense, metric)
    # the same axes whatever is filtered
    x0, x1 = _range([p.x for p in every] + ([dense.value] if dense else []))
    y0, y1 = _range([p.y for p in every])

    def place(x: float, y: float) -> tuple[float, float]:
        return 100 * (x - x0) / (x1 - x0), 100 * (y - y0) / (y1 - y0)

    parts = [f'<span class="x" style="left:{place(t, 0)[0]:.2f}%">{_short(t)}</span>'
             for t in ticks(x0, x1)]  # fmt: skip
    parts += [f'<span class="y" style="bottom:{place(0, t)[1]:.2f}%">{_short(t)}</span>'
              for t in ticks(y0, y1)]  # fmt: skip
    if dense:
        parts.append(f'<span class="dense" style="left:{place(dense.value, 0)[0]:.2f}%">'
                     "<small>dense</small></span>")  # fmt: skip
    best = sorted((p for p in some if p.front), key=lambda p: p.x)
    stairs = [(x, 100 - y) for x, y in (place(p.x, p.y) for p in best)]
    line = " ".join(f"{x:.2f},{y:.2f}" for x, y in _stairs(stairs))
    names = sorted({row.facts["method"] for row in result.sparse})
    for p in sorted(some, key=lambda p: (p.x, p.y)):
        left, bottom = place(p.x, p.y)
        label, method = p.row.label, p.row.facts["method"]
        wide = f" ± {p.half:.1f}" if p.half and metric else ""
        tip = f"{label}: {tall.format(p.y)}{wide}, {form.format(p.x)}" + ", on the front" * p.front
        classes = "point" + " front" * p.front + " mixed" * (method == "mixed")
        parts.append(
            f'<button class="{classes}" data-label="{html.escape(label)}" '
            f'aria-label="{html.escape(tip)}" aria-pressed="{str(label == chosen).lower()}" '
            f'style="left:{left:.2f}%;bottom:{bottom:.2f}%;'
            f'--colour:{colour(names.index(method), len(names))}"></button>'
        )
    return (
        f'<div class="plot"><div class="up">{up}</div><div class="area" role="group" '
        f'aria-label="{len(some)} settings: {up} over {across}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{line}"/></svg>{"".join(parts)}</div>'
        f'<div class="across">{across}</div></div>'
        f'<p class="readout" aria-live="polite">Point at a dot for its numbers; click it, or press '
        f"Enter on it, to load the setting.</p>{_legend(names, shown)}"
    )


def _legend(names: list[str], shown: list[str]) -> str:
    """Return the colours of the methods that are shown."""
    keys = [
        f'<span class="key"><i class="{"mixed" if name == "mixed" else ""}" '
        f'style="--colour:{colour(number, len(names))}"></i>{html.escape(name)}</span>'
        for number, name in enumerate(names)
        if name in shown
    ]
    keys.append('<span class="key"><i class="ring"></i>on the front</span>')
    return f'<p class="legend">{"".join(keys)}</p>'


def _stairs(front: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of a front, from its first point to the right edge."""
    corners = []
    for number, (x, y) in enumerate(front):
        corners += [(x, front[number - 1][1])] * (number > 0) + [(x, y)]
    return [*corners, (100.0, front[-1][1])] if front else []


def _range(values: list[float]) -> tuple[float, float]:
    """Return the ends of an axis, a little beyond the values."""
    low, high = min(values), max(values)
    more = 0.06 * ((high - low) or abs(high) or 1.0)
    return low - more, high + more


def _short(value: float) -> str:
    """Write a tick without digits that say nothing."""
    return f"{value:.6g}".replace("-0", "0") if abs(value) < 1e-12 else f"{value:.6g}"
