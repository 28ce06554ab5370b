"""What an attention error does to the video, from generations that are sparse in one place.

    lost(v, t)  = mean squared difference from dense of video v when the cells of trial t are sparse
    unit(t)     = geometric mean over v of lost(v, t) / error(t)
    w[p, n]     = unit(part p) unit(layers of n), mean 1
    g[c]        = unit(candidate c), errors weighted by w

Geometric means, for what is reported is the mean PSNR. Layers and candidates are compared in
generations that are dense in the first part: sparse from the first step, the coarse candidates
would give another video, whose distance says little of a place where they stand alone. w g error is
then the harm in squared difference of the video, and harms of different places add up as far as
they are independent. Generations of fewer steps would not do: what they bear is another thing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit_sparse.search.choose import Problem

GROUPS = 4  # of layers whose weight is measured together
SPREAD = 20.0  # weights and gains are held within so many times the middle, and its inverse


@dataclass(frozen=True, eq=False)
class Trials:
    """The choices [P, L, H] that are tried, by what they tell of.

    parts: one part sparse. After the first part: layers, a group of layers sparse; groups: their
    numbers; candidates: every candidate but dense.
    """

    parts: list[Tensor]
    layers: list[Tensor]
    candidates: list[Tensor]
    groups: list[Tensor]

    @classmethod
    def of(cls, problem: Problem) -> Trials:
        """Return the trials of a problem."""
        count, layers, _, candidates = problem.errors.shape
        # one in the middle of the list stands for all where places are compared
        middle = max(1, candidates // 2)
        groups = list(torch.arange(layers).chunk(min(GROUPS, layers)))

        def sparse(parts: Tensor, some: Tensor, number: int) -> Tensor:
            choice = problem.dense()
            choice[parts[:, None], some] = number
            return choice

        late, every = torch.arange(count > 1, count), torch.arange(layers)
        return cls(
            [sparse(p[None], every, middle) for p in torch.arange(count)] if count > 1 else [],
            [sparse(late, some, middle) for some in groups] if len(groups) > 1 else [],
            [sparse(late, every, c) for c in range(1, candidates)],
            groups,
        )

    @property
    def every(self) -> list[Tensor]:
        """All choices: of parts, of layers, of candidates."""
        return [*self.parts, *self.layers, *self.candidates]


def weighed(problem: Problem, trials: Trials, lost: Tensor) -> Problem:
    """Return the problem with weights and gains.

    lost: [V, trials] mean squared differences of the videos, in the order of `every`.
    """
    log = lost.clamp(min=1e-12).log().mean(0)
    first, second = len(trials.parts), len(trials.parts) + len(trials.layers)
    plain = replace(problem, weights=torch.ones_like(problem.weights),
                    gains=torch.ones_like(problem.gains))  # fmt: skip
    parts = _units(plain, trials.parts, log[:first])
    layers = _units(plain, trials.layers, log[first:second])
    weights = plain.weights
    if trials.parts:
        weights = weights * _held(parts)[:, None]
    if trials.layers:
        which = torch.cat([torch.full_like(g, n) for n, g in enumerate(trials.groups)])
        weights = weights * _held(layers)[which]
    plain = replace(plain, weights=weights / weights.mean())
    units = _units(plain, trials.candidates, log[second:])
    middle = units.median()
    gains = units.clamp(middle / SPREAD, middle * SPREAD)
    # what dense attention would do to the video: its error is none
    return replace(plain, gains=torch.cat([middle[None], gains]))


def _units(problem: Problem, choices: list[Tensor], log: Tensor) -> Tensor:
    """Return what a unit of squared error does to the video, for each choice."""
    errors = torch.tensor([problem.harmed(c) for c in choices], dtype=torch.float64)
    return (log - errors.clamp(min=1e-12).log()).exp()


def _held(units: Tensor) -> Tensor:
    """Return units relative to their mean, held within the spread."""
    return (units / units.mean()).clamp(1 / SPREAD, SPREAD)
