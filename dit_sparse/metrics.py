"""How close two videos are: PSNR and SSIM over frames with values in 0..1.

    psnr(sparse, dense), ssim(sparse, dense)

Both are torchmetrics' values with a data range of 1, per frame, then averaged over the frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_sparse.errors import ArgumentError

CHUNK = 16  # frames at once, so that the scratch memory does not grow with the video
SMALLEST = 11  # pixels a side; the window of SSIM


def psnr(a: Any, b: Any) -> float:
    """Return the peak signal-to-noise ratio in dB, larger = closer.

    a, b: [F, H, W, 3] in 0..1, arrays or tensors. Per frame 10 * log10(1 / mean((a - b)^2)) over
    all pixels and channels; the result is the mean over the frames that differ. Equal videos have
    no noise: the result is `inf` (no number in JSON: the command line writes null).

        psnr(np.zeros((1, 16, 16, 3)), np.full((1, 16, 16, 3), 0.1))  # 20.0
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    def frames(x: Tensor, y: Tensor) -> Tensor:
        values = [peak_signal_noise_ratio(p, q, data_range=1.0) for p, q in zip(x, y, strict=True)]
        return torch.stack(values)

    values = _per_frame(a, b, frames)
    noisy = values[values.isfinite()]
    return float(noisy.mean()) if len(noisy) else math.inf


def ssim(a: Any, b: Any) -> float:
    """Return the structural similarity, 1 = equal.

    a, b: [F, H, W, 3] in 0..1, at least 11 x 11 pixels, arrays or tensors. Per frame, with an
    11 x 11 Gaussian window of sigma 1.5, k1 = 0.01, k2 = 0.03, on each colour channel; the result
    is the mean over pixels, channels and frames.

        ssim(video, video)  # 1.0
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    def frames(x: Tensor, y: Tensor) -> Tensor:
        value = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
        assert isinstance(value, Tensor)
        return value.reshape(len(x), -1).mean(-1)

    if min(np.shape(a)[1:3], default=SMALLEST) < SMALLEST:
        raise ArgumentError(
            f"videos of {tuple(np.shape(a))}: SSIM needs {SMALLEST} x {SMALLEST} pixels"
        )
    return float(_per_frame(a, b, frames).mean())


def _per_frame(a: Any, b: Any, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Measure frames in chunks: measure([C, 3, H, W], [C, 3, H, W]) -> [C]; returns [F]."""
    if np.shape(a) != np.shape(b) or len(np.shape(a)) != 4 or np.shape(a)[-1] != 3:
        raise ArgumentError(
            f"videos of {tuple(np.shape(a))} and {tuple(np.shape(b))}; both must be [F, H, W, 3]"
        )
    if len(a) == 0:
        raise ArgumentError("videos without frames cannot be compared")
    values = []
    for start in range(0, len(a), CHUNK):
        pair = (torch.as_tensor(v[start : start + CHUNK]) for v in (a, b))
        x, y = (v.to(torch.float32).movedim(-1, 1).contiguous() for v in pair)
        values.append(measure(x, y))
    return torch.cat([v.reshape(-1) for v in values])
