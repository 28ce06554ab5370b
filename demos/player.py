"""Videos side by side that play in step: one element, one bar of controls."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

ROUTE = "gradio_api/file="

EMPTY = """<div class="trio" role="img"
aria-label="Empty places for the dense video, the sparse video and their difference">
<figure><figcaption>dense</figcaption><div class="blank"></div></figure>
<figure><figcaption>sparse</figcaption><div class="blank"></div></figure>
<figure><figcaption>difference</figcaption><div class="blank"></div></figure></div>
<div class="bar-of-controls"></div>"""

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
    """One of the videos. title: above it; told: what a screen reader says."""

    title: str
    told: str
    file: Path


def player(videos: Sequence[Shown], frames: int, height: int, width: int, fps: float) -> str:
    """Return the element for videos of one size; of a single frame: pictures, nothing to play."""
    figures = "".join(
        f'<figure><figcaption title="{html.escape(shown.title)}">{html.escape(shown.title)}'
        "</figcaption>"
        f"{_medium(shown, height, width)}"
        f'<a class="get" href="{address(shown.file)}" download="{html.escape(shown.file.name)}">'
        f"Download {shown.file.suffix[1:]}</a></figure>"
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


def address(file: Path) -> str:
    """Return where the page's server gives a file away."""
    return html.escape(ROUTE + quote(str(file)))


def _medium(shown: Shown, height: int, width: int) -> str:
    told, size = html.escape(shown.told), f'width="{width}" height="{height}"'
    if shown.file.suffix == ".png":
        return f'<img src="{address(shown.file)}" alt="{told}" {size}>'
    return (
        f'<video src="{address(shown.file)}" aria-label="{told}" {size} muted playsinline '
        'preload="auto" tabindex="-1"></video>'
    )


def component(gr: Any) -> Any:
    """Return the player as a component of the page, empty."""
    return gr.HTML(EMPTY, js_on_load=SCRIPT, elem_id="player", label="Videos")
