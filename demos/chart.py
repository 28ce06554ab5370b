"""Numbers and small charts as HTML, in the page's colours; a screen reader reads them."""

from __future__ import annotations

import html
from collections.abc import Sequence

WIDTH = 320  # units of the drawing; it is scaled to the page
ROW = 30


def tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    """Return (name, value, what it means) as a list of tiles."""
    found = (
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        f'<dd class="what">{html.escape(told)}</dd></div>'
        for name, value, told in facts
    )
    return f'<dl class="tiles">{"".join(found)}</dl>'


def empty(text: str) -> str:
    """Return the frame of what is not there yet, with a word about it."""
    return f'<div class="empty">{html.escape(text)}</div>'


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Draw a bar for each (name, value, text of the value), all on one scale from zero."""
    longest = max((value for _, value, _ in rows), default=0) or 1.0
    parts = []
    for at, (name, value, text) in enumerate(rows):
        length, top = 150 * value / longest, at * ROW
        parts.append(
            f'<text x="0" y="{top + 19}">{html.escape(name)}</text>'
            f'<rect class="bar{at % 2}" x="92" y="{top + 5}" width="{length:.1f}" height="20"/>'
            f'<text x="{98 + length:.1f}" y="{top + 19}">{html.escape(text)}</text>'
        )
    told = ", ".join(f"{name} {text}" for name, _, text in rows)
    return _svg(title, f"{title}: {told}", len(rows) * ROW, parts)


def line(title: str, values: Sequence[float], axis: str) -> str:
    """Draw shares in 0..1 over the counted steps, from the first to the last.

    axis: what is counted, the text below.
    """
    height, left, bottom = 96, 36, 74
    step = (WIDTH - left - 8) / max(1, len(values) - 1)
    points = [(left + i * step, bottom - 64 * value) for i, value in enumerate(values)]
    parts = [
        f'<line class="rule" x1="{left}" x2="{WIDTH - 8}" y1="{bottom - 64 * share:g}" '
        f'y2="{bottom - 64 * share:g}"/>'
        f'<text class="small" x="{left - 6}" y="{bottom + 4 - 64 * share:g}" text-anchor="end">'
        f"{share:.0%}</text>"
        for share in (0, 0.5, 1)
    ]
    route = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline class="curve" points="{route}"/>')
    parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points]
    if values:
        parts.append(
            f'<text class="small" x="{left}" y="{height - 4}">{html.escape(axis)} 1</text>'
            f'<text class="small" x="{WIDTH - 8}" y="{height - 4}" text-anchor="end">'
            f"{len(values)}</text>"
        )
    told = ", ".join(f"{value:.0%}" for value in values)
    return _svg(title, f"{title}, by {axis}: {told}", height, parts)


def _svg(title: str, told: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg role="img" aria-label="{html.escape(told)}" viewBox="0 0 {WIDTH} {height}">'
        f"{''.join(parts)}</svg></figure>"
    )
