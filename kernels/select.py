"""Cut ranked blocks by budgets: top-k, top-p, quotas, thresholds and token budgets in one rule.

    class_n = #{t : mass_before_n >= budget_t  and  rank_n >= floor_t}

The entries of a row are ranked by falling score (equal scores by rising index); mass_before_n is
the weight of all better ranked entries. So the entry that crosses a budget still belongs to it;
with `inclusive` its own weight counts too, and it does not.
Users: TopP (svg2), token budgets (svg_ear), pyramid levels (psa), top-p with a floor (rectified).
On the device, without a sync.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def budget_classes(
    score: Tensor,
    budgets: Tensor | Sequence[float],
    weight: Tensor | None = None,
    *,
    floors: Sequence[int] | None = None,
    inclusive: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Return int8 [B, H, M, N]: how many of the T budgets are used up when an entry's turn comes.

    score: [B, H, M, N] floating. weight: [B or 1, H or 1, M or 1, N], not negative; None: 1 each.
    budgets: T rising numbers, or [B or 1, H or 1, M or 1, T]. floors: T counts; the best floor_t
    entries stay below class t + 1 whatever their weight.

    >>> budget_classes(torch.tensor([[[[0.1, 0.6, 0.3]]]]), (1, 2)).tolist()
    [[[[2, 0, 1]]]]
    """
    n, wide = score.shape[-1], torch.promote_types(score.dtype, torch.float32)
    order = score.argsort(dim=-1, descending=True, stable=True)
    rank = torch.arange(n, device=score.device)
    mass = (rank + 1).to(wide).expand_as(score)
    own = torch.ones((), dtype=wide, device=score.device)
    if weight is not None:
        own = weight.to(wide).expand_as(score).gather(-1, order)
        mass = own.cumsum(-1)
    if not isinstance(budgets, Tensor):
        budgets = torch.tensor(tuple(budgets), dtype=wide, device=score.device).view(1, 1, 1, -1)
    classes = torch.zeros_like(score, dtype=torch.int8)
    for t in range(budgets.shape[-1]):
        limit = budgets[..., t : t + 1].to(wide)
        past = mass > limit if inclusive else mass - own >= limit
        if floors is not None:
            past = past & (rank >= floors[t])
        classes += past
    return torch.zeros_like(classes).scatter_(-1, order, classes)
