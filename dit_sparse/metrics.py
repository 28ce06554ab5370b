"""How close two videos are, and how steady one is by itself; frames have values in 0..1.

    psnr(sparse, dense), ssim(sparse, dense)
    flicker(video), warped_error(video)

The first two are torchmetrics' values with a data range of 1, per frame, then averaged over the
frames. The others need no second video: compare theirs for a sparse and a dense one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_sparse.errors import ArgumentError

CHUNK = 16  # frames at once, so that the scratch memory does not grow with the video
SMALLEST = 11  # pixels a side; the window of SSIM
# pixels a side; on less the optical flow has no coarse level to begin with
SMALLEST_FLOW = 16
# a pixel is seen in both frames when the way there and back ends within
# |there + back|^2 <= RETURN (|there|^2 + |back|^2) + STRAY pixels^2
RETURN, STRAY = 0.01, 0.5


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


def flicker(video: Any) -> float:
    """Return the mean absolute change from one frame to the next, 0 = a still picture.

    video: [F, H, W, 3] in 0..1, at least two frames. The mean over all pixels, channels and pairs
    of successive frames; VBench's temporal flickering is 1 less this number, taken on still scenes.
    Motion counts as well: only a comparison with the dense video of the same seed tells flicker.

        flicker(np.ones((9, 32, 32, 3)))  # 0.0
    """
    changes = [np.abs(b - a).mean(dtype=np.float64) for a, b in _pairs(video, 1)]
    return float(np.mean(changes))


def warped_error(video: Any) -> float:
    """Return the mean squared change from frame to frame along the optical flow, 0 = none.

    video: [F, H, W, 3] in 0..1, at least two frames of 16 x 16 pixels. E_warp of Lai et al. 2018
    (1808.00449): frame t + 1 is warped back to t by the flow between their grey values (OpenCV DIS,
    medium preset) and the squared differences, summed over channels, are averaged over the pixels
    seen in both frames. Seen means: the way there and back ends where it began (Sundaram et al.
    2010) and stays in the picture. A pair without such pixels is left out; nan when all are.
    """
    import cv2

    # OpenCV's type hints do not know the arguments that may be None
    flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    remap: Any = cv2.remap
    errors, grey = [], None
    for a, b in _pairs(video, SMALLEST_FLOW):
        before = _grey(a) if grey is None else grey
        grey = _grey(b)
        there, back = (flow.calc(*pair, None) for pair in ((before, grey), (grey, before)))
        height, width = before.shape
        at = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1) + there
        at = at.astype(np.float32)
        inside = (at >= 0).all(-1) & (at[..., 0] <= width - 1) & (at[..., 1] <= height - 1)
        back, warped = (remap(x, at, None, cv2.INTER_LINEAR) for x in (back, b))
        length = (there**2).sum(-1) + (back**2).sum(-1)
        seen = inside & (((there + back) ** 2).sum(-1) <= RETURN * length + STRAY)
        if seen.any():
            errors.append(((warped - a) ** 2).sum(-1)[seen].mean(dtype=np.float64))
    return float(np.mean(errors)) if errors else math.nan


def _pairs(video: Any, side: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield successive frames, float32 [H, W, 3]; raise when there are none or too small ones."""
    shape = tuple(np.shape(video))
    if len(shape) != 4 or shape[-1] != 3 or shape[0] < 2 or min(shape[1:3]) < side:
        raise ArgumentError(
            f"a video of {shape}; it must be [F, H, W, 3] with at least 2 frames of {side} x {side}"
        )
    frames = (np.ascontiguousarray(frame, np.float32) for frame in np.asarray(video))
    return itertools.pairwise(frames)


def _grey(frame: np.ndarray) -> np.ndarray:
    """Return a frame [H, W, 3] in 0..1 as grey values, uint8 [H, W]."""
    import cv2

    return (255 * cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)).round().clip(0, 255).astype(np.uint8)


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
