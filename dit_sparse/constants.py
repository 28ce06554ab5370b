"""What no tensor decides: places that spread evenly, and tables made once per device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def golden(n: int, shift: float = 0.0) -> float:
    """Return the n-th multiple of the golden ratio, from `shift` on, modulo 1.

    The first multiples spread evenly over [0, 1), however many are taken, and fall in step with no
    grid: no ratio of small whole numbers comes near this one.
    """
    return (shift + n * ((5**0.5 - 1) / 2)) % 1


@lru_cache(maxsize=4096)
@torch.inference_mode(False)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Return numbers as a tensor [n], copied to a device once: each copy waits for it.

    Outside inference mode, for a later call may need it with gradients.
    """
    return torch.tensor(values, dtype=dtype).to(device)
