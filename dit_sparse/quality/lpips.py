"""LPIPS, the distance of two pictures in a trained network's features, where its weights are.

    d(a, b) = sum_l mean_hw sum_c w_lc (f_l(a) - f_l(b))_c^2        (Zhang et al. 2018, 1801.03924)

f_l: the features after each of AlexNet's five convolutions, divided by their norm over channels; w:
the published weights of version 0.1, part of torchmetrics. AlexNet's own weights are looked for
where torchvision keeps them and never downloaded.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.errors import ArgumentError

BACKBONE = "alexnet-owt-7be5be79.pth"
# of each convolution: its place in torchvision's `features`, stride, padding, and whether the
# features before it are pooled
CONVOLUTIONS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False),
                (10, 1, 1, False))  # fmt: skip
# of the pictures in -1..1
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST = 31  # pixels a side; less is pooled away before the last features
CHUNK = 8  # frames at once


def missing() -> str:
    """Return why LPIPS cannot be computed here, "" when it can."""
    for path, what in ((_backbone(), "AlexNet's weights"), (_heads(), "torchmetrics' LPIPS")):
        if not path.is_file():
            return f"{what} are not at {path}"
    return ""


def lpips(a: Any, b: Any) -> float:
    """Return the distance of two videos, the mean over their frames, 0 = equal.

    a, b: [F, H, W, 3] in 0..1, at least 31 x 31 pixels, arrays or tensors.

        lpips(sparse, dense) if not missing() else None
    """
    shape = tuple(np.shape(a))
    if shape != np.shape(b) or len(shape) != 4 or shape[-1] != 3 or min(shape[1:3]) < SMALLEST:
        raise ArgumentError(
            f"videos of {shape} and {tuple(np.shape(b))}; both must be [F, H, W, 3] with at least "
            f"{SMALLEST} x {SMALLEST} pixels"
        )
    if why := missing():
        raise ArgumentError(f"LPIPS needs weights that are not here: {why}")
    total = 0.0
    for first in range(0, len(a), CHUNK):
        pair = (torch.as_tensor(v[first : first + CHUNK], dtype=torch.float32) for v in (a, b))
        total += float(_distance(*(x.movedim(-1, 1).cpu() for x in pair)).sum())
    return total / len(a)


@torch.no_grad()
def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the distance of each pair of pictures [F, 3, H, W], [F]."""
    total = a.new_zeros(len(a))
    layers, heads = _weights(str(_backbone()), str(_heads()))
    for x, y, w in zip(_features(a, layers), _features(b, layers), heads, strict=True):
        total += ((x - y).square() * w).sum(1).mean((1, 2))
    return total


def _features(x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return the normalised features after each convolution, [F, C, h, w]."""
    shift, scale = (x.new_tensor(v)[:, None, None] for v in (SHIFT, SCALE))
    x, found = (2 * x - 1 - shift) / scale, []
    for (weight, bias), (_, stride, padding, pooled) in zip(layers, CONVOLUTIONS, strict=True):
        x = F.max_pool2d(x, 3, 2) if pooled else x
        x = F.conv2d(x, weight, bias, stride, padding).relu()
        found.append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
    return found


@lru_cache(maxsize=1)
def _weights(backbone: str, heads: str) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Read the five convolutions and the five weightings of their channels."""
    told = torch.load(backbone, map_location="cpu", weights_only=True)
    names = [f"features.{place}" for place, *_ in CONVOLUTIONS]
    linear = torch.load(heads, map_location="cpu", weights_only=True)
    layers = [(told[f"{name}.weight"], told[f"{name}.bias"]) for name in names]
    return layers, [linear[f"lin{i}.model.1.weight"] for i in range(len(names))]


def _backbone() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE


def _heads() -> Path:
    found = find_spec("torchmetrics")
    root = Path(found.origin).parent if found and found.origin else Path()
    return root / "functional" / "image" / "lpips_models" / "alex.pth"
