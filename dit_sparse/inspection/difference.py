"""Where two videos differ, as a video: black = equal, then red, yellow and white."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dit_sparse.media import to_uint8

# of the largest possible difference: what is white. A tenth is plain to see
FULL = 0.25
RAMP = ((8, 8, 12), (150, 20, 30), (235, 120, 30), (250, 225, 90), (255, 255, 255))


def difference(dense: Iterable[Any], sparse: Iterable[Any]) -> Iterator[np.ndarray]:
    """Yield frames of the absolute difference, mean over the channels; uint8 [H, W, 3].

    dense, sparse: frames [H, W, 3], uint8 or float in 0..1, equally many. Each is rounded to 8 bits
    first: what is shown is what a file shows. FULL of the range and more is white.

        media.write("difference.mp4", difference(dense, sparse), fps=16)
    """
    at = np.linspace(0, 255 * FULL, len(RAMP))
    for pair in zip(dense, sparse, strict=True):
        left, right = (to_uint8(frame).astype(np.float32) for frame in pair)
        apart = np.abs(left - right).mean(-1)
        channels = [np.interp(apart, at, [colour[i] for colour in RAMP]) for i in range(3)]
        yield np.stack(channels, -1).round().astype(np.uint8)
