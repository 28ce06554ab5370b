"""Videos side by side that play in step: one element, one bar of controls."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dit_sparse.demos import address

SIDE, LOOKING = 10, (4, 4)  # patches of the drawing; the one that looks
# pairs of rows and of columns, as blocks of patches are kept together
SEEN = {(1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (0, 4)}
LOOKS = (
    ("dense", "every patch looks at every other"),
    ("sparse", "it looks only where it matters"),
    ("difference", "black: equal, white: far apart"),
)

# the first video leads, the others follow it; one range moves all
SCRIPT = """
function start() {
  const videos = [...element.querySelectorAll("video")];
  const button = element.querySelector("button.play"), range = element.querySelector("input");
  const clock = element.querySelector("output");
  if (!videos.length) return;
  const lead = videos[0], fps = Number(element.querySelector(".trio").dataset.fps);
  const count = Number(range.max) + 1;
  let held = false;
  const all = (work) => videos.forEach(work);
  const tell = () => {
    const frame = Math.min(count - 1, Math.floor(lead.currentTime * fps + 1e-3));
    if (!held) range.value = frame;
    clock.textContent = `${Number(range.value) + 1} / ${count}`;
    range.setAttribute("aria-valuetext", `frame ${Number(range.value) + 1} of ${count}`);
    const text = lead.paused ? "Play" : "Pause";
    if (button.textContent !== text) button.textContent = text;
    element.dataset.apart = Math.max(...videos.map(
      (video) => Math.abs(video.currentTime - lead.currentTime))) * fps;
  };
  const align = () => all((video) => {
    if (video !== lead && Math.abs(video.currentTime - lead.currentTime) > 0.5 / fps)
      video.currentTime = lead.currentTime;
  });
  const play = () => Promise.all(videos.map((video) => video.play())).catch(() => {});
  const pause = () => { all((video) => video.pause()); align(); };
  // the middle of a frame: rounding cannot show its neighbour
  const seek = (frame) => all((video) => { video.currentTime = (frame + 0.5) / fps; });
  button.onclick = () => { lead.paused ? play() : pause(); tell(); };
  range.oninput = () => { held = true; pause(); seek(Number(range.value)); tell(); };
  range.onchange = () => { held = false; };
  lead.onended = () => { all((video) => { video.currentTime = 0; }); play(); };
  const loop = () => {
    if (!lead.isConnected) return;
    if (!lead.paused) align();
    tell();
    requestAnimationFrame(loop);
  };
  loop();
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
}
watch("value", start);
start();
"""


class Shown(NamedTuple):
    """One of the videos. title: above it; note: below; told: what a screen reader says."""

    title: str
    note: str
    told: str
    file: Path


def player(videos: Sequence[Shown], frames: int, height: int, width: int, fps: float) -> str:
    """Return the element for videos of one size; of a single frame: pictures, nothing to play."""
    figures = "".join(
        _figure(
            shown.title,
            _medium(shown, height, width),
            shown.note,
            f'<a href="{address.of_file(shown.file)}" '
            f'download="{html.escape(shown.file.name)}">'
            f"Download {shown.file.suffix[1:]}</a>",
        )
        for shown in videos
    )
    controls = ""
    if frames > 1:
        controls = (
            '<button type="button" class="play">Play</button>'
            f'<input type="range" min="0" max="{frames - 1}" value="0" aria-label="Frame">'
            "<output></output>"
        )
    return (
        f'<div class="trio" data-fps="{fps:g}">{figures}</div>'
        f'<div class="bar-of-controls">{controls}</div>'
    )


def drawing() -> str:
    """Return what stands there before any video: what one patch looks at, dense and sparse."""
    cells = [(row, column) for row in range(SIDE) for column in range(SIDE)]
    kept = [(row, column) for row, column in cells if (row // 2, column // 2) in SEEN]
    ring = f'<circle class="ring" cx="{SIDE / 2:g}" cy="{SIDE / 2:g}" r="{SIDE / 4:g}"/>'
    grounds = _patches(cells), _patches(kept), f'<rect class="dark" {_square(0, 0, SIDE)}/>{ring}'
    figures = "".join(
        _figure(title, f'<svg class="blank" viewBox="0 0 {SIDE} {SIDE}" role="img" '
                f'aria-label="{title}: {note}">{ground}</svg>', note)
        for (title, note), ground in zip(LOOKS, grounds, strict=True)
    )  # fmt: skip
    return f'<div class="trio">{figures}</div><div class="bar-of-controls"></div>'


def _patches(seen: Sequence[tuple[int, int]]) -> str:
    """Draw all patches, those that are looked at coloured, and the one that looks outlined."""
    row, column = LOOKING
    grid = []
    for y in range(SIDE):
        for x in range(SIDE):
            kind = "seen" if (y, x) in seen else "unseen"
            grid.append(f'<rect class="{kind}" {_square(x + 0.06, y + 0.06, 0.88)}/>')
    return f'{"".join(grid)}<rect class="looks" {_square(column, row, 1)}/>'


def _square(x: float, y: float, side: float) -> str:
    return f'x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}"'


def _figure(title: str, ground: str, note: str, more: str = "") -> str:
    """Return a picture or a video with its title above and a line below."""
    name = html.escape(title)
    return (
        f'<figure><figcaption title="{name}">{name}</figcaption>{ground}'
        f'<p class="note">{html.escape(note)}</p><p class="get">{more}</p></figure>'
    )


def _medium(shown: Shown, height: int, width: int) -> str:
    told, size = html.escape(shown.told), f'width="{width}" height="{height}"'
    if shown.file.suffix == ".png":
        return f'<img src="{address.of_file(shown.file)}" alt="{told}" {size}>'
    return (
        f'<video src="{address.of_file(shown.file)}" aria-label="{told}" {size} muted playsinline '
        'preload="auto" tabindex="-1"></video>'
    )


def component(gr: Any) -> Any:
    """Return the player as a component of the page, with a drawing in it."""
    return gr.HTML(drawing(), js_on_load=SCRIPT, elem_id="player", label="Videos")
