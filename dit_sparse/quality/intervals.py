"""Means of values that belong to prompts and seeds, with 95 % intervals of Student's t.

The seeds of a prompt are averaged first, for they are no independent prompts; the interval is over
prompts, and over seeds where there is one prompt. Values of two cases are compared as differences
on the same prompt and seed: what makes a prompt hard is in both and cancels. Shares of questions
answered have score intervals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

LEVEL = 0.95
Video = tuple[str, int]  # prompt, seed


@dataclass(frozen=True)
class Mean:
    """A mean and the half width of its interval, None where one value has none.

    n: number of independent values; over: "prompts" or "seeds".
    """

    value: float
    half: float | None
    n: int
    over: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return asdict(self)

    @property
    def sure(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.half is not None and abs(self.value) > self.half


def mean(values: Mapping[Video, float]) -> Mean | None:
    """Return the mean over prompts of the means over their seeds; None without a value.

    >>> mean({("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 4.0}).value
    3.0
    """
    prompts: dict[str, list[float]] = defaultdict(list)
    for (prompt, _), value in values.items():
        prompts[prompt].append(value)
    if not prompts:
        return None
    several = len(prompts) > 1
    points = [np.mean(v) for v in prompts.values()] if several else next(iter(prompts.values()))
    n = len(points)
    spread = float(np.std(points, ddof=1)) if n > 1 else 0.0
    half = quantile(n - 1) * spread / n**0.5 if n > 1 else None
    return Mean(float(np.mean(points)), half, n, "prompts" if several else "seeds")


def difference(a: Mapping[Video, float], b: Mapping[Video, float]) -> Mean | None:
    """Return the mean of a - b over the videos that both have."""
    return mean({video: a[video] - b[video] for video in a if video in b})


@lru_cache(maxsize=256)
def quantile(dof: int, level: float = LEVEL) -> float:
    """Return t with P(|T| < t) = level for Student's T of `dof` degrees of freedom.

    With T = sqrt(dof) tan(angle) the density of the angle is cos^(dof - 1) on a quarter turn.

    >>> round(quantile(1), 3), round(quantile(10), 3)
    (12.706, 2.228)
    """
    angle = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (dof - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    at = np.interp(level, below / below[-1], angle)
    return float(np.sqrt(dof) * np.tan(at))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % score interval (Wilson 1927) of a share of n independent trials.

    Unlike a mean's, it has a width where all trials ended alike.

    >>> [round(end, 3) for end in wilson(1.0, 8)]
    [0.676, 1.0]
    """
    z = 1.959964
    middle, half = share + z * z / (2 * n), z * (share * (1 - share) / n + (z / n / 2) ** 2) ** 0.5
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)
