"""Views as pictures: maps with frame lines, and what a patch looks at on the video's own frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dit_sparse.inspection.capture import Look, Map, View
from dit_sparse.media import to_uint8

SIDE, GAP, LINE = 360, 16, 22  # pixels: of a map, between panels, of a line of text
THUMBS, THUMB = 9, 160  # frames of a strip at most; pixels a frame is high at least
PAPER, INK, FAINT = (252, 252, 252), (30, 30, 30), (120, 120, 120)
EXACT, POOLED, REST = (31, 95, 168), (236, 158, 60), (232, 232, 232)
HEAT, HERE = (220, 40, 30), (30, 200, 60)
# attention over uniform attention, as powers of ten, from the first colour to the last
RANGE = (-2.0, 2.0)
RAMP = (
    (250, 250, 250),
    (198, 219, 239),
    (107, 174, 214),
    (33, 113, 181),
    (8, 48, 107),
    (4, 12, 40),
)


def view(shown: View, frames: Any = None) -> Image.Image:
    """Draw one view: four maps, and two strips for each patch.

    frames: the video [N, H, W, 3] in 0..1 or uint8; without it strips have plain ground.
    """
    title = (
        f"{shown.part}, layer {shown.layer}, head {shown.head}, step {shown.step}: "
        f"density {shown.numbers.density:.3f}, recall {shown.numbers.recall:.3f}, "
        f"error {shown.numbers.error:.3f}"
    )
    panels = [
        _panel(attention(shown.own), "attention, in the method's blocks"),
        _panel(choice(shown.own), "kept, in the method's blocks"),
        _panel(attention(shown.video), "attention, frame by frame"),
        _panel(choice(shown.video), "kept, frame by frame"),
    ]
    rows: list[Image.Image] = [_text(title, bold=True), _beside(panels)]
    for seen in shown.looks:
        rows += [_text(caption(seen)), heat_strip(seen, frames), choice_strip(seen, frames)]
    return _below([*rows, _legend()])


def attention(shown: Map) -> Image.Image:
    """Draw the attention of a map, dark = much, on a logarithmic scale around uniform."""
    low, high = RANGE
    power = np.log10(np.maximum(shown.mass, 10.0**low))
    return _lined(_ramp((power - low) / (high - low)), shown)


def choice(shown: Map) -> Image.Image:
    """Draw what a method keeps: exact, pooled and the remainder, mixed by their shares."""
    exact, pooled = shown.exact[..., None], shown.pooled[..., None]
    mixed = exact * EXACT + pooled * POOLED + (1 - exact - pooled) * REST
    return _lined(mixed.clip(0, 255).astype(np.uint8), shown)


def caption(seen: Look) -> str:
    """Say which patch a strip is about."""
    frame, row, column = seen.patch
    text = f", {seen.text:.0%} of its attention on the text" if seen.text else ""
    return f"what the patch at frame {frame}, row {row}, column {column} looks at{text}"


def heat_strip(seen: Look, frames: Any = None) -> Image.Image:
    """Draw the attention of one patch on some frames beside each other."""
    return _strip(seen, frames, heat)


def choice_strip(seen: Look, frames: Any = None) -> Image.Image:
    """Draw what is kept for one patch on some frames beside each other."""
    return _strip(seen, frames, kept)


def heat(seen: Look, number: int, frames: Any = None) -> Image.Image:
    """Draw the attention of one patch in red over one frame of tokens in grey."""
    low, high = -0.5, RANGE[1]
    power = np.log10(np.maximum(seen.mass[number], 10.0**low))
    share = ((power - low) / (high - low)).clip(0, 1)
    ground = _ground(frames, number, *seen.mass.shape)
    grey = 90 + 0.55 * ground.mean(-1, keepdims=True).repeat(3, -1)
    part = _enlarged(share, grey.shape)[..., None]
    return _outlined(grey * (1 - part) + part * np.array(HEAT), seen, number)


def kept(seen: Look, number: int, frames: Any = None) -> Image.Image:
    """Draw one frame where it is kept exactly, tinted where pooled, darkened elsewhere."""
    ground = _ground(frames, number, *seen.mass.shape)
    level = _enlarged(seen.level[number], ground.shape)[..., None]
    tinted = 0.55 * ground + 0.45 * np.array(POOLED)
    colours = np.where(level == 1, ground, np.where(level > 1, tinted, 0.22 * ground))
    return _outlined(colours, seen, number)


def chosen(seen: Look, most: int = THUMBS) -> list[int]:
    """Return at most so many frames of tokens, evenly spread, the patch's own among them."""
    count = len(seen.mass)
    some = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    if seen.patch[0] not in some:
        some[np.abs(some - seen.patch[0]).argmin()] = seen.patch[0]
    return some.tolist()


def _strip(seen: Look, frames: Any, paint: Any) -> Image.Image:
    """Draw some frames beside each other."""
    thumbs = [_panel(paint(seen, n, frames), f"frame {n}") for n in chosen(seen)]
    return _beside(thumbs, gap=6)


def _outlined(colours: np.ndarray, seen: Look, number: int) -> Image.Image:
    """Return colours [h, w, 3] in 0..255 as a picture, the patch outlined in its own frame."""
    picture = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    frame, row, column = seen.patch
    if number == frame:
        _, height, width = seen.mass.shape
        down, across = picture.height / height, picture.width / width
        box = (column * across, row * down, (column + 1) * across, (row + 1) * down)
        ImageDraw.Draw(picture).rectangle(box, outline=HERE, width=3)
    return picture


def _ground(frames: Any, number: int, count: int, height: int, width: int) -> np.ndarray:
    """Return the picture that belongs to a frame of tokens, float [h, w, 3] in 0..255."""
    scale = max(1, -(-THUMB // height))
    if frames is None:
        return np.full((height * scale, width * scale, 3), 200.0)
    # the first frame of a video has tokens of its own, and the last ones end with it
    at = round(number * (len(frames) - 1) / max(1, count - 1))
    picture = Image.fromarray(to_uint8(frames[at]))
    size = (width * scale, height * scale)
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS)).astype(float)


def _enlarged(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return values [h, w] repeated to the pixels of a picture."""
    down, across = shape[0] // values.shape[0], shape[1] // values.shape[1]
    return values.repeat(down, 0).repeat(across, 1)


def _ramp(share: np.ndarray) -> np.ndarray:
    """Return the colours of shares in 0..1, uint8 [..., 3]."""
    at = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(share, at, [colour[i] for colour in RAMP]) for i in range(3)]
    return np.stack(channels, -1).astype(np.uint8)


def _lined(colours: np.ndarray, shown: Map) -> Image.Image:
    """Enlarge a map and draw a line where each frame begins."""
    lines, columns = colours.shape[:2]
    picture = Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for mark in shown.marks:
        y, x = (
            round(SIDE * float(np.searchsorted(edges, mark)) / n)
            for edges, n in ((shown.rows, lines), (shown.columns, columns))
        )
        draw.line((0, y, SIDE, y), fill=FAINT)
        draw.line((x, 0, x, SIDE), fill=FAINT)
    draw.rectangle((0, 0, SIDE - 1, SIDE - 1), outline=FAINT)
    return picture


def _panel(picture: Image.Image, title: str) -> Image.Image:
    """Put a title above a picture."""
    return _below([_text(title), picture], gap=0)


def _text(text: str, bold: bool = False) -> Image.Image:
    """Draw one line of text."""
    font = ImageFont.load_default(16 if bold else 13)
    strip = Image.new("RGB", (round(font.getlength(text)) + 4, LINE), PAPER)
    ImageDraw.Draw(strip).text((2, LINE / 2), text, fill=INK, font=font, anchor="lm")
    return strip


def _legend() -> Image.Image:
    """Draw what the colours mean."""
    low, high = RANGE
    ramp = _ramp(np.linspace(0, 1, 160)[None].repeat(14, 0))
    parts = [_text("attention over uniform:"), _text(f"{10**low:g}"), Image.fromarray(ramp),
             _text(f"{10**high:g}")]  # fmt: skip
    for colour, what in ((EXACT, "exact"), (POOLED, "pooled"), (REST, "remainder")):
        parts += [Image.new("RGB", (14, 14), colour), _text(what)]
    parts.append(_text("rows: queries, columns: keys"))
    return _beside(parts, gap=6)


def _beside(pictures: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Put pictures in a row."""
    width = sum(p.width for p in pictures) + gap * (len(pictures) - 1)
    whole = Image.new("RGB", (width, max(p.height for p in pictures)), PAPER)
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + gap
    return whole


def _below(pictures: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """Put pictures below each other."""
    height = sum(p.height for p in pictures) + gap * (len(pictures) - 1)
    whole = Image.new("RGB", (max(p.width for p in pictures), height), PAPER)
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height + gap
    return whole
