"""The pictures of the tab "Look inside" as HTML: places, maps and numbers of a view.

    view = recording.view(layer, head, step, (4, 8, 8))
    places(view, recording.frames), maps(view, "video"), numbers(view, recording.rest)

Attention is drawn by `dit_sparse.inspection`; here it is put on a page.
"""

from __future__ import annotations

import html
from typing import Any

from PIL import Image

from dit_sparse.demos import address, chart
from dit_sparse.demos.recording import Recording
from dit_sparse.inspection import draw
from dit_sparse.inspection.capture import View

ORDERS = {"frame by frame": "video", "in the method's own order": "own"}
# what the numbers of a head are, in words
READ = {"error": "error of the output", "recall": "share of the attention that is kept",
        "density": "share of the work that is done"}  # fmt: skip


def places(view: View, frames: Any = None) -> str:
    """Return what the view's patch looks at and what of it is kept, frame by frame, as HTML.

    Every picture tells its frame of tokens; the element tells the patch and the grid.
    """
    look = view.looks[0]
    count, height, width = look.mass.shape
    frame, row, column = look.patch
    kinds = (
        ("Where this place looks", "red = it looks here", draw.heat, "where the patch looks"),
        ("What the method computes", "bright = exactly, orange tint = pooled, dark = the rest",
         draw.kept, "what the method computes for the patch"),
    )  # fmt: skip
    parts = []
    for title, legend, paint, what in kinds:
        figures = []
        for number in draw.chosen(look):
            picture = paint(look, number, frames)
            alt = f"frame {number}: {what}" + (", the chosen patch outlined" * (number == frame))
            here = ' class="here"' * (number == frame)
            alt += "; click or use the arrow keys to choose another patch"
            drawn = _picture(picture, alt, f'tabindex="0" data-frame="{number}"')
            figures.append(f"<figure{here}>{drawn}<figcaption>{number}</figcaption></figure>")
        parts.append(f'<h3>{title} <small>{legend}</small></h3><div class="frames">'
                     f"{''.join(figures)}</div>")  # fmt: skip
    told = f'data-patch="{frame},{row},{column}" data-sides="{count},{height},{width}"'
    return f'<div class="places" {told}>{"".join(parts)}</div>'


def maps(view: View, order: str) -> str:
    """Return the map of attention and of what is kept as HTML; order: "video" or "own"."""
    shown = getattr(view, order)
    cells = (
        (draw.attention(shown), "Attention", "dark = much attention, white = almost none",
         f"attention map of layer {view.layer}, head {view.head}, step {view.step}: rows are the "
         "places that look, columns the places looked at"),
        (draw.choice(shown), "Kept", "blue = exact, orange = pooled, grey = the rest",
         f"the same map: {float(shown.exact.mean()):.0%} of the pairs computed exactly, "
         f"{float(shown.pooled.mean()):.0%} pooled"),
    )  # fmt: skip
    figures = [
        f"<figure><figcaption><b>{title}</b> {legend}</figcaption>{_picture(picture, alt)}</figure>"
        for picture, title, legend, alt in cells
    ]
    return f'<div class="maps">{"".join(figures)}</div>'


def numbers(view: View, rest: str) -> str:
    """Return the share of work, the kept attention and the error of a head as HTML, in words."""
    error, recall, density = view.numbers
    facts = (
        ("work done", f"{density:.1%}", "of all pairs of places are computed"),
        ("attention kept", f"{recall:.1%}", "lies in what is computed exactly"),
        ("error", f"{error:.1%}", "of this head's output against full attention"),
    )
    text = view.looks[0].text
    more = f" {text:.0%} of this place's attention is on the words of the prompt." if text else ""
    note = f"<p>What is not kept is {html.escape(rest)}.{more}</p>"
    return chart.tiles(facts) + note


def heads_table(recording: Recording, layer: int, head: int, step: int) -> str:
    """Return the numbers of all kept heads at a step as tables; every cell is a button."""
    readings = {n: recording.reading(n, step) for n in recording.layers}
    titles = "".join(f'<th scope="col">{n}</th>' for n in recording.heads)
    tables = []
    for name, title in READ.items():
        rows = []
        for n, reading in readings.items():
            cells = (
                _cell(n, h, float(value), (n, h) == (layer, head))
                for h, value in zip(recording.heads, getattr(reading, name), strict=True)
            )
            rows.append(f'<tr><th scope="row">{n}</th>{"".join(cells)}</tr>')
        tables.append(
            f"<table><caption>{title}</caption><thead><tr><th>layer, head</th>{titles}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )
    return f'<div class="heads">{"".join(tables)}</div>'


def _cell(layer: int, head: int, value: float, here: bool) -> str:
    """Return the cell of a head, the darker the larger its value in 0..1."""
    share, mark = min(1.0, max(0.0, value)), ' aria-current="true"' * here
    return (
        f'<td style="--share:{share:.3f}"><button data-layer="{layer}" data-head="{head}" '
        f'aria-label="layer {layer}, head {head}: {value:.3f}"{mark}>{value:.3f}</button></td>'
    )


def _picture(picture: Image.Image, alt: str, more: str = "") -> str:
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="{address.of_picture(picture)}" {size} alt="{alt}" {more}>'
