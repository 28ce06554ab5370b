"""The budget at which a method's measured density is the one asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from dit_sparse.reporting import Report

TRIES, NEAR = 4, 0.03


class Budget(NamedTuple):
    """A budget and the density that was measured with it; None: the method's own, not measured."""

    keep: float | None = None
    density: float | None = None


def calibrate(target: float, measure: Callable[[float], float]) -> Budget:
    """Return the budget whose density is nearest to `target`, tried at most 4 times.

    measure: budget -> density. It stops within 3 % of the target; between two densities on either
    side of it the next try is interpolated, else scaled.
    """
    keep, best = target, (math.inf, Budget())
    tried: list[tuple[float, float]] = []
    for _ in range(TRIES):
        got = measure(keep)
        tried.append((got, keep))
        best = min(best, (abs(got / target - 1), Budget(keep, got)), key=lambda found: found[0])
        if best[0] < NEAR:
            break
        below = max((t for t in tried if t[0] < target), default=None)
        above = min((t for t in tried if t[0] >= target), default=None)
        if below and above and above[0] > below[0]:
            share = (target - below[0]) / (above[0] - below[0])
            keep = below[1] + share * (above[1] - below[1])
        else:
            keep = min(1.0, max(1e-3, keep * target / got))
    return best[1]


def sparse_density(report: Report) -> float:
    """Return the mean density of the calls that were sparse, 1.0 without any."""
    cells = [cell for cell in report.cells if cell.sparse]
    # a cell's density counts its dense calls as 1
    work = sum(cell.density * cell.calls - (cell.calls - cell.sparse) for cell in cells)
    return work / sum(cell.sparse for cell in cells) if cells else 1.0
