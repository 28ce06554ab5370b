"""The captioned world of the built-in model `shapes`: its words, its scenes and their exact pixels.

One flat-coloured object moves over a still background; five attributes and a size are named by the
caption.
Space: -1..1 spans the shorter side, x to the right, y down. Time is in seconds, so length does not
change motion.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

# (first tone, second tone) in 0..1; an object has the first one, a pattern mixes both
COLOURS = {
    "red": ((0.88, 0.11, 0.12), (0.93, 0.45, 0.45)),
    "green": ((0.10, 0.60, 0.20), (0.44, 0.77, 0.50)),
    "blue": ((0.10, 0.22, 0.85), (0.44, 0.52, 0.91)),
    "yellow": ((0.98, 0.90, 0.15), (0.65, 0.60, 0.10)),
    "orange": ((0.99, 0.55, 0.06), (0.65, 0.35, 0.04)),
    "purple": ((0.55, 0.13, 0.72), (0.72, 0.44, 0.82)),
    "black": ((0.05, 0.05, 0.05), (0.38, 0.38, 0.38)),
    "white": ((0.96, 0.96, 0.96), (0.64, 0.64, 0.64)),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
MOTIONS = {
    "moves right": "moving right",
    "moves left": "moving left",
    "moves up": "moving up",
    "moves down": "moving down",
    "moves diagonally": "moving diagonally",
    "spins": "spinning",
    "grows": "growing",
    "shrinks": "shrinking",
    "bounces": "bouncing",
    "stays still": "staying still",
}
PATTERNS = ("plain", "striped", "checkered", "gradient", "noisy")
SIZES = {"small": 0.24, "": 0.36, "large": 0.50}

NAMES = (tuple(SIZES), tuple(COLOURS), SHAPES, tuple(MOTIONS), PATTERNS, tuple(COLOURS))
VOCABULARY = tuple(
    dict.fromkeys(
        w
        for phrase in (
            "a an over on background",
            *SIZES,
            *COLOURS,
            *SHAPES,
            *MOTIONS,
            *MOTIONS.values(),
            *PATTERNS,
        )
        for w in phrase.split()
    )
)
_SPIN, _GROW, _SHRINK, _BOUNCE = (
    NAMES[3].index(m) for m in ("spins", "grows", "shrinks", "bounces")
)
_ROUND = (SHAPES.index("circle"), SHAPES.index("ring"))
_PARSE = re.compile(
    rf"an? (?:(?P<size>small|large) )?(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<shape>{'|'.join(SHAPES)}) "
    rf"(?P<motion>{'|'.join([*MOTIONS, *MOTIONS.values()])}) (?:over|on) an? "
    rf"(?P<pattern>{'|'.join(PATTERNS)}) (?P<background>{'|'.join(COLOURS)}) background"
)


@dataclass(frozen=True)
class Scene:
    """Name what a clip shows; `size` is empty when the caption names none."""

    size: str
    colour: str
    shape: str
    motion: str
    pattern: str
    background: str

    def ids(self) -> list[int]:
        """Return the six positions in `NAMES`."""
        return [names.index(value) for names, value in zip(NAMES, astuple(self), strict=True)]


def scenes(ids: Tensor) -> list[Scene]:
    """Name the rows of ids: [B, 6] positions in `NAMES`."""
    return [Scene(*(names[i] for names, i in zip(NAMES, row, strict=True))) for row in ids.tolist()]


def caption(scene: Scene) -> str:
    """Say a scene: `caption(parse(text)) == text` for a caption in the canonical form."""
    words = " ".join(w for w in (scene.size, scene.colour, scene.shape, scene.motion) if w)
    article = "an" if words[0] in "aeiou" else "a"
    return f"{article} {words} over a {scene.pattern} {scene.background} background"


def parse(text: str) -> Scene | None:
    """Read a full caption back, or return None when it is not one."""
    found = _PARSE.fullmatch(" ".join(text.lower().replace(".", " ").split()))
    if not found:
        return None
    words = {k: v or "" for k, v in found.groupdict().items()}
    words["motion"] = next(m for m, ing in MOTIONS.items() if words["motion"] in (m, ing))
    return Scene(**words)


def unknown_words(text: str) -> list[str]:
    """List the words of a prompt that the built-in model has never read."""
    return [w for w in re.findall(r"[^\s.,;:!?]+", text.lower()) if w not in VOCABULARY]


def held_out(ids: Tensor) -> Tensor:
    """Mark the combinations (all attributes but the size) that training never sees, 5 % of them.

    ids: [B, 6] -> [B] bool
    """
    key = torch.zeros_like(ids[:, 0])
    for column, names in enumerate(NAMES[1:], start=1):
        key = key * len(names) + ids[:, column]
    for _ in range(2):  # integer mixing, so that no single attribute decides
        key = ((key ^ (key >> 13)) * 0x5BD1E995) & 0xFFFFFFFF
    return (key ^ (key >> 15)) % 20 == 0


def possible(ids: Tensor) -> Tensor:
    """Tell which rows can be seen: two distinct colours, and no spinning circle or ring."""
    spinning_round = (ids[:, 3] == _SPIN) & ((ids[:, 2] == _ROUND[0]) | (ids[:, 2] == _ROUND[1]))
    return (ids[:, 1] != ids[:, 5]) & ~spinning_round


def sample_ids(n: int, generator: torch.Generator, *, unseen: bool | None = False) -> Tensor:
    """Draw n scenes of the training split (`unseen=False`), the held-out one (True) or both (None).

    returns: [n, 6] int64 on the generator's device
    """
    kept, count = [], 0
    while count < n:
        size = (n - count) * (30 if unseen else 2) + 64
        columns = [
            torch.randint(len(m), (size,), generator=generator, device=generator.device)
            for m in NAMES
        ]
        ids = torch.stack(columns, 1)
        good = possible(ids) if unseen is None else possible(ids) & (held_out(ids) == unseen)
        kept.append(ids[good])
        count += len(kept[-1])
    return torch.cat(kept)[:n]


def held_out_prompts(n: int, seed: int = 0) -> list[str]:
    """Return n full captions that training never saw, the same ones for the same seed."""
    ids = sample_ids(n, torch.Generator().manual_seed(seed), unseen=True)
    return [caption(scene) for scene in scenes(ids)]


def outline(shape: int, x: Tensor, y: Tensor) -> Tensor:
    """Return the signed distance to one shape of radius about 1, negative inside; x, y: [...]."""
    ax, ay = x.abs(), y.abs()
    match SHAPES[shape]:
        case "circle":
            return (x * x + y * y).sqrt() - 1
        case "square":
            return torch.maximum(ax, ay) - 0.85
        case "triangle":
            return torch.maximum(y, 0.8660254 * ax - 0.5 * y) - 0.64
        case "star":
            # fold the plane into half a point: the tip lies at (1.25, 0), the notch at angle pi / 5
            sector = math.pi / 5
            angle = (torch.remainder(torch.atan2(x, -y) + sector, 2 * sector) - sector).abs()
            radius = (x * x + y * y).sqrt()
            notch_x, notch_y = 0.54 * math.cos(sector), 0.54 * math.sin(sector)
            norm = math.hypot(notch_y, 1.25 - notch_x)
            return (
                (radius * angle.cos() - 1.25) * notch_y + radius * angle.sin() * (1.25 - notch_x)
            ) / norm
        case "cross":
            bars = torch.maximum(ax - 1.05, ay - 0.36), torch.maximum(ax - 0.36, ay - 1.05)
            return torch.minimum(*bars)
        case _:
            return ((x * x + y * y).sqrt() - 0.75).abs() - 0.27


def _geometry(ids: Tensor, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Place the object in closed form. ids [B, 6], u [B, 32] in 0..1, t [B, F] -> x, y, radius,
    angle [B, F].
    """
    motion, jitter = ids[:, 3:4], 2 * u - 1
    base = torch.tensor(list(SIZES.values()), device=u.device)[ids[:, 0]][:, None] * (
        1 + 0.05 * jitter[:, :1]
    )
    along = 0.28 * (1 + 0.1 * jitter[:, 1:2]) * t - (0.52 + 0.06 * jitter[:, 2:3])
    x, y = (0.14 * jitter[:, 3:4]).expand_as(t), (0.14 * jitter[:, 4:5]).expand_as(t)
    side_x, side_y = jitter[:, 5:6].sign(), jitter[:, 6:7].sign()
    x = torch.where(motion == 0, along, torch.where(motion == 1, -along, x))
    y = torch.where(motion == 2, -along, torch.where(motion == 3, along, y))
    x = torch.where(motion == 4, 0.85 * along * side_x, x)
    y = torch.where(motion == 4, 0.85 * along * side_y, y)
    hop = (math.pi * 0.62 * (1 + 0.05 * jitter[:, 7:8]) * t).sin().abs()
    y = torch.where(motion == _BOUNCE, 0.48 + 0.06 * jitter[:, 4:5] - 0.95 * hop, y)
    scale = torch.where(motion == _GROW, 0.6 + 0.2 * t, torch.ones_like(t))
    scale = torch.where(motion == _SHRINK, (1.4 - 0.2 * t).clamp_min(0.3), scale)
    angle = 0.1 * jitter[:, 8:9] + torch.where(
        motion == _SPIN, 1.6 * (1 + 0.06 * jitter[:, 9:10]) * t, 0 * t
    )
    return x, y, base * scale, angle


def _pattern(ids: Tensor, u: Tensor, x: Tensor, y: Tensor, unit: float) -> Tensor:
    """Return the share of the second tone. u [B, 32], x, y [1, H, W], unit in pixels -> [B, H,
    W].
    """

    def col(i: int) -> Tensor:
        return u[:, i, None, None]

    kind, turn = ids[:, 4, None, None], 2 * math.pi
    period = 0.50 + 0.10 * col(10)
    # a sine's slope is its distance in pixels from the edge, so edges are about one pixel soft
    soft = period * unit / turn / 1.2
    across, down = (turn * (x / period + col(11))).sin(), (turn * (y / period + col(12))).sin()
    stripes = 0.5 + soft * torch.where(col(13) < 0.5, across, down)
    checks = 0.5 + soft * across * down
    theta = (col(14) * 8).floor() * (turn / 8)
    reach = theta.cos().abs() * x.max() + theta.sin().abs() * y.max()
    ramp = 0.5 + 0.5 * (x * theta.cos() + y * theta.sin()) / reach
    waves = torch.zeros_like(stripes)
    for i in range(5):  # five directions around the half circle make round blotches
        heading = (i + col(15)) * (math.pi / 5)
        waves = (
            waves
            + (
                (7 + 4 * col(16 + i)) * (x * heading.cos() + y * heading.sin()) + turn * col(21 + i)
            ).sin()
        )
    share = torch.where(kind == 1, stripes, torch.zeros_like(stripes))
    share = torch.where(kind == 2, checks, share)
    share = torch.where(kind == 3, ramp, share)
    return torch.where(kind == 4, 0.5 + 0.28 * waves, share).clamp(0, 1)


def render(
    what: Sequence[Scene] | Tensor,
    frames: int,
    height: int,
    width: int,
    fps: float = 8,
    *,
    generator: torch.Generator | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """Draw scenes, a batch at once, on the generator's device.

    what: B scenes, or their ids [B, 6]; times: optional [B, frames] seconds instead of 0, 1/fps,
    ...
    returns: [B, frames, 3, height, width] float32 in 0..1

        clip = render([parse("a red star spins over a plain blue background")], 33, 128, 128)
    """
    generator = generator or torch.Generator().manual_seed(0)
    device = generator.device
    ids = (what if isinstance(what, Tensor) else torch.tensor([s.ids() for s in what])).to(device)
    # one draw per scene whatever the length and size: the same seed gives the same scene
    u = torch.rand(len(ids), 32, generator=generator, device=device)
    t = (
        (torch.arange(frames, device=device) / fps)[None].expand(len(ids), -1)
        if times is None
        else times.to(device)
    )
    unit = min(height, width) / 2
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5 - height / 2) / unit,
        (torch.arange(width, device=device) + 0.5 - width / 2) / unit,
        indexing="ij",
    )
    tones = torch.tensor(list(COLOURS.values()), device=device)
    shift = 0.03 * (2 * u[:, 26:32].view(-1, 2, 3) - 1)
    ground = tones[ids[:, 5]] + shift[:, :1]  # [B, 2 tones, 3]
    share = _pattern(ids, u, x[None], y[None], unit)[:, None, None]
    ground = torch.lerp(ground[:, 0, :, None, None, None], ground[:, 1, :, None, None, None], share)
    paint = (tones[ids[:, 1], 0] + shift[:, 1])[:, :, None, None, None]  # [B, 3, 1, 1, 1]

    px, py, radius, angle = (g[:, :, None, None] for g in _geometry(ids, u, t))
    dx, dy = (x - px) / radius, (y - py) / radius
    cos, sin = angle.cos(), angle.sin()
    dx, dy = dx * cos + dy * sin, dy * cos - dx * sin
    shape = ids[:, 2, None, None, None]
    distance = outline(0, dx, dy)
    for i in range(1, len(SHAPES)):
        distance = torch.where(shape == i, outline(i, dx, dy), distance)
    cover = (0.5 - distance * radius * (unit / 1.2)).clamp(0, 1)[:, None]  # [B, 1, F, H, W]
    return (
        torch.lerp(ground.expand(-1, -1, t.shape[1], -1, -1), paint, cover)
        .transpose(1, 2)
        .clamp(0, 1)
    )
