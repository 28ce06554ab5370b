"""Read colour, shape, motion, pattern and background back from the pixels of a `shapes` clip.

1. the background's colour is the name most border pixels are closest to, patterns included
2. the object is what is closer to one other colour; its largest component is the mask
3. the shape is the best overlap with turned templates of equal area
4. the motion follows centroid, area and template angle over time
5. the pattern is read from the background averaged over time where no object covers it
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch

from dit_sparse.world import COLOURS, MOTIONS, SHAPES, Scene, outline

ATTRIBUTES = ("colour", "shape", "motion", "pattern", "background")
# turns that map a shape onto itself
_SYMMETRY = {"circle": 0, "square": 4, "triangle": 3, "star": 5, "cross": 4, "ring": 0}
_SIDE, _STEP = 32, math.radians(4)


@dataclass(frozen=True)
class Detection:
    """Hold what was seen; `None` where nothing could be."""

    colour: str | None
    shape: str | None
    motion: str | None
    pattern: str
    background: str


def detect(video: np.ndarray, fps: float = 8) -> Detection:
    """Name the five attributes of a clip.

    video: [F, H, W, 3] uint8, or float in 0..1
    """
    video = np.asarray(video)
    pixels = video.astype(np.float32) / (255.0 if video.dtype == np.uint8 else 1.0)
    background = _background(pixels)
    away = _to_segment(pixels, background)[0]
    found = _object_colour(pixels, away, background)
    if found is None:
        return Detection(
            None, None, None, _pattern(pixels, np.zeros(away.shape, bool), background), background
        )
    colour, paint = found
    masks = np.stack([_largest(m) for m in np.linalg.norm(pixels - paint, axis=-1) < away])
    views = [_view(m) for m in masks]
    shape, angles = _shape(views)
    motion = _motion(views, angles, _SYMMETRY[shape] if shape else 0, fps)
    return Detection(colour, shape, motion, _pattern(pixels, masks, background), background)


def score(video: np.ndarray, scene: Scene, fps: float = 8) -> dict[str, bool]:
    """Tell for each attribute whether the clip shows what the scene says."""
    seen = detect(video, fps)
    return {name: getattr(seen, name) == getattr(scene, name) for name in ATTRIBUTES}


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    z, p = 1.96, right / max(total, 1)
    centre, spread = (
        p + z * z / (2 * total),
        z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)),
    )
    low, high = (centre - spread) / (1 + z * z / total), (centre + spread) / (1 + z * z / total)
    return max(low, 0.0), min(high, 1.0)


def table(scores: Iterable[Mapping[str, bool]]) -> dict[str, dict[str, float]]:
    """Sum scores up: per cent right and its 95 % interval for each attribute and for `all` of them
    at once.
    """
    rows = [{**s, "all": all(s.values())} for s in scores]
    out = {}
    for name in (*ATTRIBUTES, "all"):
        right = sum(row[name] for row in rows)
        low, high = wilson(right, len(rows))
        out[name] = {"percent": 100 * right / len(rows), "low": 100 * low, "high": 100 * high}
    return out


def _to_segment(pixels: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the line between a colour's two tones, and the place along it; pixels
    [..., 3].
    """
    first, second = (np.array(tone, np.float32) for tone in COLOURS[name])
    axis = second - first
    place = (pixels - first) @ axis / (axis @ axis)
    nearest = first + np.clip(place, 0, 1)[..., None] * axis
    return np.linalg.norm(pixels - nearest, axis=-1), place


def _background(pixels: np.ndarray) -> str:
    edge = max(3, min(pixels.shape[1:3]) // 24)
    some = pixels[:: max(1, len(pixels) // 8)]
    sides = (some[:, :edge], some[:, -edge:], some[:, :, :edge], some[:, :, -edge:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    distances = np.stack([_to_segment(border, name)[0] for name in COLOURS])
    return list(COLOURS)[np.bincount(distances.argmin(0), minlength=len(COLOURS)).argmax()]


def _object_colour(
    pixels: np.ndarray, away: np.ndarray, background: str
) -> tuple[str, np.ndarray] | None:
    """Return the name and the mean rgb of the largest area that is closer to another colour."""
    every = slice(None, None, max(1, len(pixels) // 8))
    names = [name for name in COLOURS if name != background]
    tones = np.array([COLOURS[name][0] for name in names], np.float32)
    distances = np.stack([np.linalg.norm(pixels[every] - tone, axis=-1) for tone in tones])
    label = np.where(distances.min(0) + 0.08 < away[every], distances.argmin(0), -1)
    # blurred edges pass through third colours: count the insides first
    for size in (5, 3, 1):
        kernel = np.ones((size, size), np.uint8)
        inside = [
            [cv2.erode((frame == i).astype(np.uint8), kernel) for frame in label]
            for i in range(len(names))
        ]
        counts = np.array([np.sum(masks) for masks in inside])
        if counts.max() >= 12:
            best = int(counts.argmax())
            return names[best], np.median(pixels[every][np.array(inside[best], bool)], axis=0)
    return None


def _largest(mask: np.ndarray) -> np.ndarray:
    """Keep the largest component of a frame's mask [H, W]."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=4
    )
    if count < 2:
        return np.zeros_like(mask)
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


@dataclass(frozen=True)
class _View:
    """One frame's object: area and centre in units of half the shorter side, and its normalised
    picture.
    """

    area: float
    x: float
    y: float
    cut: bool
    picture: np.ndarray  # [_SIDE * _SIDE], zero mean, unit norm


def _view(mask: np.ndarray) -> _View | None:
    count, (height, width) = int(mask.sum()), mask.shape
    if count < 12:
        return None
    ys, xs = np.nonzero(mask)
    x, y, unit = xs.mean(), ys.mean(), min(height, width) / 2
    cut = xs.min() == 0 or ys.min() == 0 or xs.max() == width - 1 or ys.max() == height - 1
    zoom = 0.42 * _SIDE / math.sqrt(count)
    move = np.array([[zoom, 0, _SIDE / 2 - 0.5 - zoom * x], [0, zoom, _SIDE / 2 - 0.5 - zoom * y]])
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), max(0.4, 0.4 / zoom))
    picture = cv2.warpAffine(soft, move, (_SIDE, _SIDE), flags=cv2.INTER_LINEAR).ravel()
    picture = picture - picture.mean()
    centre = (x + 0.5 - width / 2) / unit, (y + 0.5 - height / 2) / unit
    return _View(count / unit**2, *centre, cut, picture / max(float(np.linalg.norm(picture)), 1e-6))


@cache
def _templates(shape: str) -> np.ndarray:
    """Draw a shape at every turn that looks different: [turns, _SIDE * _SIDE]."""
    order = _SYMMETRY[shape]
    turns = round(2 * math.pi / order / _STEP) if order else 1
    line = torch.linspace(-1.6, 1.6, 160)
    y, x = torch.meshgrid(line, line, indexing="ij")
    views = []
    for i in range(turns):
        angle = i * 2 * math.pi / order / turns if order else 0.0
        cos, sin = math.cos(angle), math.sin(angle)
        view = _view(
            (outline(SHAPES.index(shape), x * cos + y * sin, y * cos - x * sin) < 0).numpy()
        )
        assert view is not None
        views.append(view.picture)
    return np.stack(views)


def _shape(views: list[_View | None]) -> tuple[str | None, list[float | None]]:
    """Return the best shape over the clip, and its angle in every frame that shows it whole."""
    whole = [v for v in views if v and not v.cut] or [v for v in views if v]
    if not whole:
        return None, [None] * len(views)
    best = np.stack(
        [v.picture for v in sorted(whole, key=lambda v: -v.area)[: max(4, len(whole) // 2)]]
    )
    shape = max(SHAPES, key=lambda name: float((best @ _templates(name).T).max(1).mean()))
    drawn = _templates(shape)
    period = 2 * math.pi / max(_SYMMETRY[shape], 1)
    turn = [
        None if v is None or v.cut else int((drawn @ v.picture).argmax()) * period / len(drawn)
        for v in views
    ]
    return shape, turn


def _swing(values: np.ndarray) -> tuple[float, float]:
    """Return the largest rise and the largest fall between any earlier and later value."""
    rise = (values - np.minimum.accumulate(values)).max()
    return float(rise), float((np.maximum.accumulate(values) - values).max())


def _motion(
    views: list[_View | None], angles: list[float | None], order: int, fps: float
) -> str | None:
    seen = [(i / fps, v) for i, v in enumerate(views) if v]
    if len(seen) < max(3, len(views) // 2):
        return None
    t = np.array([at for at, _ in seen])
    x, y, area = (np.array([getattr(v, key) for _, v in seen]) for key in ("x", "y", "area"))
    span = t[-1] - t[0]
    dx, dy = (float(np.polyfit(t, line, 1)[0]) for line in (x, y))  # per second
    rise, fall = _swing(y)
    if min(rise, fall) > 0.25:
        return "bounces"
    moved = [abs(d) > 0.1 for d in (dx, dy)]
    if any(moved):
        if all(moved) and min(abs(dx), abs(dy)) > 0.45 * max(abs(dx), abs(dy)):
            return "moves diagonally"
        if abs(dx) > abs(dy):
            return "moves right" if dx > 0 else "moves left"
        return "moves down" if dy > 0 else "moves up"
    if order:
        period = 2 * math.pi / order
        steps = [
            (b - a + period / 2) % period - period / 2
            for a, b in itertools.pairwise(angles)
            if a is not None and b is not None
        ]
        if len(steps) > len(views) // 3 and abs(float(np.mean(steps))) * fps > 0.6:
            return "spins"
    ratio = math.exp(float(np.polyfit(t, np.log(area), 1)[0]) * span)
    motion = "grows" if ratio > 1.4 else "shrinks" if ratio < 1 / 1.4 else "stays still"
    assert motion in MOTIONS
    return motion


def _pattern(pixels: np.ndarray, masks: np.ndarray, background: str) -> str:
    cover = np.stack([cv2.dilate(m.astype(np.uint8), np.ones((7, 7), np.uint8)) for m in masks])
    weight = (1.0 - cover).sum(0)
    place = np.clip(_to_segment(pixels, background)[1], -0.3, 1.3)
    known = weight > 0
    share = (place * (1 - cover)).sum(0) / np.maximum(weight, 1)
    centred = np.where(known, share - share[known].mean(), 0.0)
    total = float((centred[known] ** 2).mean())
    if total < 0.1**2:
        return "plain"

    def explained(guess: np.ndarray) -> float:
        return 1 - float(((centred - guess)[known] ** 2).mean()) / total

    height, width = known.shape
    ys, xs = np.mgrid[0:height, 0:width]
    ramp = np.stack([xs.ravel() / width, ys.ravel() / height, np.ones(known.size)], 1)
    fit = np.linalg.lstsq(ramp[known.ravel()], centred[known], rcond=None)[0]
    if explained((ramp @ fit).reshape(known.shape)) > 0.7:
        return "gradient"
    columns = centred.sum(0, keepdims=True) / np.maximum(known.sum(0, keepdims=True), 1)
    rows = centred.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    if max(explained(columns), explained(rows)) > 0.6:
        return "striped"
    # a checkered board is one row pattern times one column pattern: fill the hidden part and look
    # at rank one
    filled = product = centred
    for _ in range(4):
        u, s, vt = np.linalg.svd(filled, full_matrices=False)
        product = s[0] * np.outer(u[:, 0], vt[0])
        filled = np.where(known, centred, product)
    return "checkered" if explained(product) > 0.6 else "noisy"
