"""Who gets what: a letter for each head, by measured error and measured time.

For each part p of the steps and each layer n the letters minimise

    sum over letters in use (a_c + b_c heads of c)  +  split (letters in use - 1)
        +  price * sum_h harm[p, n, h, c_h]

over all sets of at most 3 letters, each head taking its best within the set: for one price this is
the exact optimum, for every letter in use has a fixed cost of its own and cells share nothing else.
The price is the Lagrange multiplier of the budget, one for the whole model: where it is met, the
next second costs the same loss in every layer and part, which is how water-filling spreads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

TOGETHER = 3  # letters in a layer
HALVINGS = 32


@dataclass(frozen=True, eq=False)
class Problem:
    """What is known of a model.

    errors: [P, L, H, C] mean squared relative error of attention at a step; the first candidate
    is dense. harm: [P, L, H, C] what a step so computed adds to the mean squared difference of the
    video. steps: number of steps of each part. fixed, each: [C] seconds of a launch and of a head.
    split: seconds that a further letter costs a layer besides.
    """

    errors: Tensor
    harm: Tensor
    steps: tuple[int, ...]
    fixed: Tensor
    each: Tensor
    split: float = 0.0

    def seconds(self, choice: Tensor) -> float:
        """Return the time of all attention calls (of one CFG branch) of a choice [P, L, H]."""
        heads = torch.nn.functional.one_hot(choice, self.errors.shape[3]).double().sum(2)
        used = heads.clamp(max=1)
        cells = heads @ self.each + used @ self.fixed + self.split * (used.sum(-1) - 1)
        return float((cells.sum(1) * torch.tensor(self.steps)).sum())

    def error(self, choice: Tensor) -> float:
        """Return the relative error of a layer's output, the root of its mean square."""
        count = sum(self.steps) * self.errors.shape[1]
        return math.sqrt(self._sum(self.errors, choice) / count)

    def psnr(self, choice: Tensor) -> float:
        """Return the predicted PSNR of the videos in dB."""
        return -10 * math.log10(max(1e-10, self.harmed(choice)))

    def harmed(self, choice: Tensor) -> float:
        """Return the predicted squared difference of the videos: harms add up."""
        return self._sum(self.harm, choice)

    def _sum(self, values: Tensor, choice: Tensor) -> float:
        cells = values.gather(3, choice[..., None]).sum((1, 2, 3))
        return float((cells * torch.tensor(self.steps)).sum())

    def dense(self) -> Tensor:
        """Return the choice of dense attention everywhere."""
        return torch.zeros(self.errors.shape[:3], dtype=torch.int64)

    def at(self, price: float) -> Tensor:
        """Return the best choice [P, L, H] where squared error has a price in seconds."""
        cost = self.each + price * self.harm
        count = cost.shape[-1]
        # fewer letters repeat their first
        sets = [
            (*some, *some[:1] * (TOGETHER - size))
            for size in range(1, TOGETHER + 1)
            for some in combinations(range(count), size)
        ]
        letters = torch.tensor(sets)
        used = [list(set(some)) for some in sets]
        fixed = torch.stack([self.fixed[u].sum() + self.split * (len(u) - 1) for u in used])
        choice = []
        for part in cost:
            # [L, H, sets]: a head's best in each set, and which that is
            least, which = part[..., letters].min(-1)
            best = (least.sum(1) + fixed).argmin(-1)
            own = which.gather(2, best[:, None, None].expand(-1, part.shape[1], 1))[..., 0]
            choice.append(letters[best][:, None].expand(*own.shape, -1).gather(2, own[..., None]))
        return torch.stack(choice)[..., 0]


def within(problem: Problem, error: float) -> Tensor:
    """Return the fastest choice whose error is at most `error`; dense where only that is."""
    return _bisect(problem, lambda choice: problem.error(choice) <= error, cheap=True)


def near(problem: Problem, psnr: float) -> Tensor:
    """Return the fastest choice whose predicted PSNR is at least `psnr`."""
    return _bisect(problem, lambda choice: problem.psnr(choice) >= psnr, cheap=True)


def faster(problem: Problem, seconds: float) -> Tensor | None:
    """Return the choice of least error whose time is at most `seconds`, None when there is none."""
    dense = problem.dense()
    if problem.seconds(dense) <= seconds:
        return dense
    found = _bisect(problem, lambda choice: problem.seconds(choice) <= seconds, cheap=False)
    return found if problem.seconds(found) <= seconds else None


def _bisect(problem: Problem, fits: Callable[[Tensor], bool], cheap: bool) -> Tensor:
    """Return the choice of the lowest price that fits (cheap), else of the highest.

    Error falls and time rises with the price, so that a budget of either kind cuts the prices once.
    Where no price fits it is dense, or the fastest choice.
    """
    low, high = (math.log(price) for price in _range(problem))
    best = problem.dense() if cheap else problem.at(math.exp(low))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        choice = problem.at(math.exp(middle))
        fine = fits(choice)
        best = choice if fine else best
        low, high = (low, middle) if fine == cheap else (middle, high)
    return best


def _range(problem: Problem) -> tuple[float, float]:
    """Return two prices: at the first time alone counts, at the second error alone."""
    cells = problem.harm[..., 1:]
    some = cells[cells > 0]
    if not len(some):
        return 0.5, 2.0
    time = float((problem.fixed + problem.each).max() + problem.split) * problem.errors.shape[2]
    return 1e-6 * time / float(some.max()), 1e3 * time / float(some.min())
