"""What each choice does to the video, by what it does to the prediction of the model.

    harm(p, n, h, c) = unit(p) effect(p, n, c) error(p, n, h, c) / sum over heads of error(p, n, c)
    unit(p)          = mean over v of lost(v, p) / (steps of p sum_n effect(p, n, m))

lost(v, p) is the mean squared difference of video v from the dense one when all layers have
candidate m in part p alone: what an error of the prediction does to the video depends on when it is
made. Not the geometric mean: a part that spoils one video in ten spoils it by a hundred times what
the others lose. The sum of all harm is the squared difference of the video as far as the harms of
different places are independent. Generations of fewer steps would not do: what they bear is another
thing.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-12


def trials(effects: Tensor) -> list[Tensor]:
    """Return the choices [P, L] to generate for `harm`: one part with candidate m everywhere.

    effects: [P, L, C] of prediction errors, dense first. m: the candidate in the middle.
    """
    parts, layers, candidates = effects.shape
    order = effects.sum((0, 1))[1:].argsort()
    middle = 1 + order[(candidates - 1) // 2]
    choices = []
    for part in range(parts):
        choice = torch.zeros(parts, layers, dtype=torch.int64)
        choice[part] = middle
        choices.append(choice)
    return choices


def harm(errors: Tensor, effects: Tensor, steps: tuple[int, ...], lost: Tensor) -> Tensor:
    """Return what a choice does to the video by one step, [P, L, H, C].

    errors: [P, L, H, C] of attention; effects: [P, L, C]; lost: [V, P] of the `trials`.
    """
    tried = torch.stack([effects.gather(2, c[..., None]).sum() for c in trials(effects)])
    unit = lost.mean(0) / (tried * torch.tensor(steps)).clamp(min=LEAST)
    share = errors / errors.sum(2, keepdim=True).clamp(min=LEAST)
    return unit[:, None, None, None] * effects[:, :, None] * share
