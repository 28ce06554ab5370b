"""What no tensor decides: places that spread evenly, and tables made once per device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def golden(n: int, shift: float = 0.0) -> float:
    """Return the n-th multiple of the golden ratio, from `shift` on, modulo 1.

    The first multiples spread evenly over [0, 1), however many are taken, and fall in step with no
    grid: no ratio of small whole numbers comes near this one.
    """
    return (shift + n * ((5**0.5 - 1) / 2)) % 1


def made_once(most: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep the last `most` results of a function of sizes: tensors that many calls read.

    They are made outside inference mode, for a later call may need them with gradients; and not
    kept where tensors are fake, for a later call may need real ones.
    """

    def wrap(make: Callable[P, T]) -> Callable[P, T]:
        made = torch.inference_mode(False)(make)
        kept: Any = lru_cache(maxsize=most)(made)

        @wraps(make)
        def find(*args: P.args, **kwargs: P.kwargs) -> T:
            fake = type(torch.empty(0)) is not Tensor
            return made(*args, **kwargs) if fake else kept(*args, **kwargs)

        return find

    return wrap


@made_once(4096)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Return numbers as a tensor [n], copied to a device once: each copy waits for it."""
    return torch.tensor(values, dtype=dtype).to(device)
