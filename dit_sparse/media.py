"""Write videos and images so that a file under its final name is always whole.

    write("cat.mp4", frames, fps=16)
    write("cat_compare.mp4", side_by_side(dense, sparse, ("dense  8.1 s", "pisa  3.9 s")), fps=16)

Frames are [H, W, 3], uint8 or float in 0..1, and may come from a generator: none is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from dit_sparse.errors import ArgumentError

VIDEO, ANIMATION, IMAGE = (".mp4",), (".gif", ".webp"), (".png",)
EXTENSIONS = VIDEO + ANIMATION + IMAGE
GAP, MARGIN = 8, 10  # pixels between panels; around a label
READABLE = 320  # pixels; a panel is enlarged by whole factors until its label can be read
PAPER, INK = (250, 250, 250), (25, 25, 25)


def write(
    path: str | Path, frames: Iterable[Any], fps: float = 16, *, overwrite: bool = True
) -> Path:
    """Write frames [H, W, 3] to .mp4 (H.264, yuv420p), .gif, .webp or .png (one frame).

    The file appears under its name when it is whole. overwrite: replace an existing file, else
    take the next free name (`cat-2.mp4`). Returns the path that was written.
    """
    path = Path(path)
    pictures = (to_uint8(frame) for frame in frames)
    writers = {**dict.fromkeys(ANIMATION, _animation), ".mp4": _mp4, ".png": _png}
    if path.suffix.lower() not in writers:
        raise ArgumentError(f"{path.name!r}: use one of {', '.join(EXTENSIONS)}")
    with part_file(path) as part:
        writers[path.suffix.lower()](part, pictures, fps)
        return publish(part, path, overwrite)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error of the system say which file it is of; a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.strerror and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def part_file(path: Path) -> Iterator[Path]:
    """Give a hidden name beside `path` that is removed on any way out, Ctrl-C included."""
    part = path.with_name(f".{path.stem[:40]}.part{os.getpid()}{path.suffix}")
    try:
        with named(path):
            yield part
    finally:
        part.unlink(missing_ok=True)


def publish(part: Path, path: Path, overwrite: bool) -> Path:
    """Give a finished file its final name in one step; returns that name."""
    if overwrite:
        part.replace(path)
        return path
    for name in names(path):
        try:
            os.link(part, name)  # fails when the name is taken: no other process can lose its file
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            name = free(path)
            part.replace(name)
        return name
    raise AssertionError("names() does not end")


def names(path: Path) -> Iterator[Path]:
    """Yield cat.mp4, cat-2.mp4, cat-3.mp4, ..."""
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


def free(path: Path) -> Path:
    """Return the first of `names` that does not exist."""
    return next(name for name in names(path) if not name.exists())


def to_uint8(frame: Any) -> np.ndarray:
    """Return a frame [H, W, 3] (or [H, W]) as uint8 [H, W, 3]; floats are 0..1, rounded."""
    frame = np.asarray(frame)
    if frame.ndim == 2:
        frame = np.repeat(frame[..., None], 3, -1)
    if frame.ndim != 3 or frame.shape[-1] not in (3, 4):
        raise ArgumentError(f"a frame has shape {frame.shape}; expected [H, W, 3]")
    frame = frame[..., :3]
    if frame.dtype != np.uint8:
        frame = (np.clip(frame, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(frame)


def side_by_side(
    left: Iterable[Any], right: Iterable[Any], labels: tuple[str, str]
) -> Iterator[np.ndarray]:
    """Yield frames with two videos beside each other, a label above each; uint8 [H', W', 3]."""
    header: np.ndarray | None = None
    scale = 1
    for pair in zip(left, right, strict=True):
        panels = [to_uint8(frame) for frame in pair]
        if header is None:
            scale = max(1, ceil(READABLE / panels[0].shape[1]))
            header = _header(panels[0].shape[1] * scale, labels)
        panels = [panel.repeat(scale, 0).repeat(scale, 1) for panel in panels]
        gap = np.full((panels[0].shape[0], GAP, 3), PAPER, np.uint8)
        yield np.concatenate([header, np.concatenate([panels[0], gap, panels[1]], 1)])


def _header(width: int, labels: tuple[str, str]) -> np.ndarray:
    """Draw two labels on a strip above panels of `width` pixels."""
    from PIL import Image, ImageDraw, ImageFont

    def fitting(text: str) -> Any:
        for size in range(max(18, width // 20), 9, -1):
            font = ImageFont.load_default(size)
            if font.getlength(text) <= width - 2 * MARGIN:
                return font
        return ImageFont.load_default(10)

    font = min((fitting(text) for text in labels), key=lambda f: f.size)
    height = round(font.size * 1.3) + 2 * MARGIN
    strip = Image.new("RGB", (2 * width + GAP, height), PAPER)
    draw = ImageDraw.Draw(strip)
    for left, text in zip((0, width + GAP), labels, strict=True):
        place = (left + width / 2, height / 2)
        draw.text(place, text, fill=INK, font=font, anchor="mm")
    return np.asarray(strip)


def _mp4(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    import imageio
    from imageio_ffmpeg import count_frames_and_secs

    # yuv420p is what every player shows; it halves the colours, so sizes must be even
    quality = ["-crf", "17", "-movflags", "+faststart"]
    writer = imageio.get_writer(
        path, format="FFMPEG", fps=fps, codec="libx264", pixelformat="yuv420p", quality=None,
        macro_block_size=1, ffmpeg_params=quality, ffmpeg_log_level="error",
    )  # fmt: skip
    # leaving `with writer` by an error would not wait for ffmpeg, which then makes the file anew
    count = 0
    with closing(writer):
        for frame in frames:
            height, width = frame.shape[:2]
            writer.append_data(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge"))
            count += 1
    # nobody tells how ffmpeg ended
    try:
        found = count_frames_and_secs(str(path))[0]
    except RuntimeError:
        found = 0
    if found != count:
        what = f"{found} of {count} frames can be read back; is the disk full?"
        raise OSError(f"no whole video in {path.parent}: {what}")


def _animation(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    from PIL import Image

    pictures = (Image.fromarray(frame) for frame in frames)
    first, kind = next(pictures), path.suffix[1:].lower()
    # GIF counts hundredths of a second
    duration = round(1000 / fps) if kind == "webp" else max(20, 10 * round(100 / fps))
    extra: dict[str, Any] = {"quality": 90, "method": 4} if kind == "webp" else {}
    # opened here: the library leaves its own file open when it is interrupted
    with path.open("wb") as file:
        first.save(
            file, kind, save_all=True, append_images=pictures, loop=0, duration=duration, **extra
        )


def _png(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    from PIL import Image

    picture, more = next(frames), next(frames, None)
    if more is not None:
        raise ArgumentError(f"{path.name}: .png holds one frame; use .mp4, .gif or .webp")
    with path.open("wb") as file:
        Image.fromarray(picture).save(file, "png")
