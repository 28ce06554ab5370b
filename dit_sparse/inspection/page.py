"""Views as files: one PNG each, and one HTML page that holds them all and needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from dit_sparse.inspection import draw
from dit_sparse.inspection.capture import Camera, Reading, View
from dit_sparse.media import part_file, publish

Place = tuple[str, int, int]  # transformer, layer, step

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em;
       color: #1e1e1e; background: #fcfcfc }
h1 { font-size: 1.3em } h2 { font-size: 1.05em; margin: 1.4em 0 .4em }
table { border-collapse: collapse; display: inline-block; vertical-align: top; margin-right: 2em }
caption { text-align: left; color: #555 } th { font-weight: 400; color: #777; padding: 0 .5em }
td { padding: .15em .5em; text-align: right; font-variant-numeric: tabular-nums }
td.shown { cursor: pointer; outline: 1px solid #888; outline-offset: -1px }
td.now { outline: 3px solid #1ec83c; outline-offset: -3px }
select { font: inherit } img { max-width: 100%; margin-top: .6em } .facts { color: #555 }
</style></head><body>
<h1>$title</h1><p class="facts">$facts</p>
<p>Choose a head: <select id="choice">$options</select>
or click an outlined number below; the arrow keys go on.</p>
<img id="view" alt="">
<h2>All heads of the chosen calls</h2>
<p class="facts">error: of the head's output against exact attention on the same q, k, v, over
sampled query rows. recall: the share of the exact attention that lies in exactly computed blocks.
density: the share of the query-key pairs that is computed.</p>
$tables
<script>
const pictures = $pictures, choice = document.getElementById("choice");
function show() {
  document.getElementById("view").src = "data:image/png;base64," + pictures[choice.value];
  for (const cell of document.querySelectorAll("td.shown"))
    cell.classList.toggle("now", cell.dataset.view === choice.value);
}
for (const cell of document.querySelectorAll("td.shown"))
  cell.onclick = () => { choice.value = cell.dataset.view; show(); scrollTo(0, 0); };
document.onkeydown = (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.target === choice) return;
  const count = choice.options.length;
  choice.selectedIndex = (choice.selectedIndex + step + count) % count;
  show();
};
choice.onchange = show;
show();
</script></body></html>
"""


def write(folder: Path, camera: Camera, title: str, facts: str, frames: Any = None) -> list[Path]:
    """Write a PNG of every view and `index.html` into a folder; returns the page's name first.

    title, facts: what stands above. frames: the video [N, H, W, 3]. Each file appears under its
    name when it is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures, files = {}, []
    for shown, name in zip(camera.views, names(camera.views), strict=True):
        pictures[name] = png(draw.view(shown, frames))
        files.append(_save(folder / f"{name}.png", pictures[name]))
    text = page(pictures, camera.readings, title, facts)
    return [_save(folder / "index.html", text.encode()), *files]


def names(views: Sequence[View]) -> list[str]:
    """Return the names of views; those of a second transformer begin with its name."""
    several = len({view.part for view in views}) > 1
    return [f"{view.part}-{view.name}" if several else view.name for view in views]


def png(picture: Image.Image) -> bytes:
    """Return a picture as PNG."""
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()


def page(
    pictures: Mapping[str, bytes], readings: Mapping[Place, Reading], title: str, facts: str
) -> str:
    """Return the page. pictures: name -> PNG; readings: of all heads, by call."""
    told = {name: base64.b64encode(data).decode() for name, data in pictures.items()}
    parts = {
        "title": html.escape(title),
        "facts": html.escape(facts),
        "options": "".join(f"<option>{html.escape(name)}</option>" for name in pictures),
        "tables": tables(readings, set(pictures)),
        "pictures": json.dumps(told),
    }
    return Template(PAGE).substitute(parts)


def tables(readings: Mapping[Place, Reading], pictured: set[str]) -> str:
    """Return a table by layer and head for each step and number; those with a picture outlined."""
    parts = sorted({part for part, _, _ in readings})
    found = []
    for part in parts:
        for step in sorted({at for name, _, at in readings if name == part}):
            rows = {layer: r for (name, layer, at), r in sorted(readings.items())
                    if (name, at) == (part, step)}  # fmt: skip
            prefix = f"{part}-" if len(parts) > 1 else ""
            for number in Reading._fields:
                found.append(_table(f"{part}, step {step}: {number}", rows, number, step,
                                    prefix, pictured))  # fmt: skip
    return "\n".join(found)


def _table(
    title: str, rows: Mapping[int, Reading], number: str, step: int, prefix: str, pictured: set[str]
) -> str:
    """Return one table, dark = large."""
    heads = max(len(getattr(reading, number)) for reading in rows.values())
    lines = [
        "".join(["<tr><th>layer</th>", *(f"<th>head {h}</th>" for h in range(heads)), "</tr>"])
    ]
    for layer, reading in rows.items():
        cells = []
        for head, value in enumerate(getattr(reading, number)):
            name = f"{prefix}layer{layer:02d}-head{head:02d}-step{step:02d}"
            share = min(1.0, max(0.0, float(value)))
            colour = f"rgba(31,95,168,{0.75 * share:.3f})"
            ink = "#fff" if share > 0.6 else "#1e1e1e"
            more = f' class="shown" data-view="{name}"' if name in pictured else ""
            style = f'style="background:{colour};color:{ink}"'
            cells.append(f"<td {style}{more}>{value:.3f}</td>")
        lines.append(f"<tr><th>{layer}</th>{''.join(cells)}</tr>")
    return f"<table><caption>{html.escape(title)}</caption>{''.join(lines)}</table>"


def _save(path: Path, data: bytes) -> Path:
    """Write a file that appears under its name when it is whole."""
    with part_file(path) as part:
        part.write_bytes(data)
        return publish(part, path, overwrite=True)
