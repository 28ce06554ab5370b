"""Cut ranked entries by budgets: top-k, top-p, quotas, thresholds and token budgets in one rule,
per row or for a whole head.

    class_n = #{t : mass_before_n >= budget_t  and  rank_n >= floor_t}

The entries of a row are ranked by falling score (equal scores by rising index); mass_before_n is
the weight of all better ranked entries. So the entry that crosses a budget still belongs to it;
with `inclusive` its own weight counts too, and it does not. A row that holds a NaN, in its scores
or weights, stays in class 0 throughout: nothing is dropped that would hide it.
Users: TopP (svg2), token budgets (svg_ear), pyramid levels (psa), top-p with a floor (rectified);
thresholds of a head: vmoba, draft. On the device, without a sync.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_sparse.kernels.pool import pick

# the most budgets one call may cut by
BUDGETS = 8
_ROW = 16384


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
    budgets: T <= 8 rising numbers, or [B or 1, H or 1, M or 1, T]. floors: T counts; the best
    floor_t entries stay below class t + 1 whatever their weight.

    >>> budget_classes(torch.tensor([[[[0.1, 0.6, 0.3]]]]), (1, 2)).tolist()
    [[[[2, 0, 1]]]]
    """
    if score.dim() != 4 or not score.is_floating_point():
        raise ValueError(
            f"score must be floating [B, H, M, N], got {score.dtype} {list(score.shape)}"
        )
    if not isinstance(budgets, Tensor):
        budgets = tuple(budgets)
    count = budgets.shape[-1] if isinstance(budgets, Tensor) else len(budgets)
    if not 1 <= count <= BUDGETS:
        raise ValueError(f"budgets must be 1 to {BUDGETS} per row, got {count}")
    if floors is not None and len(floors) != count:
        raise ValueError(f"floors must be as many as budgets ({count}), got {len(floors)}")
    if _takes_triton(score, impl, None if score.shape[-1] <= _ROW else f"rows above {_ROW}"):
        from dit_sparse.kernels import _select

        return _select.budget_classes(score, budgets, weight, floors, inclusive)
    n, wide = score.shape[-1], torch.promote_types(score.dtype, torch.float32)
    order = score.argsort(dim=-1, descending=True, stable=True)
    rank = torch.arange(n, device=score.device)
    before, upto, bad = rank.to(wide), (rank + 1).to(wide), score.isnan().any(-1, keepdim=True)
    if weight is not None:
        upto = weight.to(wide).expand_as(score).gather(-1, order).cumsum(-1)
        # shifted instead of subtracted: no rounding of its own
        before = torch.nn.functional.pad(upto[..., :-1], (1, 0))
        bad = bad | upto[..., -1:].isnan()
    classes = torch.zeros_like(score, dtype=torch.int8)
    for t in range(count):
        limit = budgets[..., t : t + 1].to(wide) if isinstance(budgets, Tensor) else budgets[t]
        past = upto > limit if inclusive else before >= limit
        if floors is not None:
            past = past & (rank >= floors[t])
        classes += past
    return torch.zeros_like(classes).scatter_(-1, order, classes).masked_fill_(bad, 0)


def head_budget(value: Tensor, budget: Tensor | float, *, impl: str = "auto") -> Tensor:
    """Return [B, H]: the largest t whose entries value >= t of a head add up to its budget.

    value: [B, H, ...] floating, not negative; budget: a number, or [B or 1, H or 1]. +inf where
    the budget is not positive; a head's least entry where all together stay below it; NaN where an
    entry is NaN (select by "not below t", so that it shows). float32, or float64 for float64.
    Exact up to the rounding of sums, whose order no other head changes; on a GPU, that of
    impl="torch" depends on the shape.

    >>> head_budget(torch.tensor([[[0.2, 0.5, 0.3]]]), 0.7).tolist()
    [[0.30000001192092896]]
    """
    if value.dim() < 3 or not value.is_floating_point():
        got = f"{value.dtype} {list(value.shape)}"
        raise ValueError(f"value must be floating [B, H, ...], got {got}")
    if value.dtype != torch.float64:
        value = value.float()
    if _takes_triton(value, impl):
        from dit_sparse.kernels import _select

        return _select.head_search(value, budget, is_count=False)
    ranked = value.flatten(2).sort(dim=-1, descending=True).values
    # Apple's GPUs have no float64
    wide = torch.float32 if value.device.type == "mps" else torch.float64
    mass = ranked.cumsum(-1, dtype=wide)
    goal = budget if isinstance(budget, Tensor) else value.new_full((1, 1), budget)
    goal = goal.to(wide)[..., None]
    place = (mass < goal).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)
    found = ranked.gather(-1, place).masked_fill(goal <= 0, float("inf"))
    return found.masked_fill(mass[..., -1:].isnan() | goal.isnan(), float("nan"))[..., 0]


def head_kth(value: Tensor, k: int, *, impl: str = "auto") -> Tensor:
    """Return [B, H]: the k-th largest entry of each head; NaN where an entry is NaN.

    value: [B, H, ...] floating; k: from 1 to the number of a head's entries.

    >>> head_kth(torch.tensor([[[0.25, 0.5, 0.125]]]), 2).tolist()
    [[0.25]]
    """
    n = value[0, 0].numel() if value.dim() > 2 else 0
    if not value.is_floating_point() or not 1 <= k <= n:
        got = f"{value.dtype} {list(value.shape)}, k={k}"
        raise ValueError(f"value must be floating [B, H, ...] with k in [1, entries], got {got}")
    if _takes_triton(value, impl):
        from dit_sparse.kernels import _select

        return _select.head_search(value.float(), k, is_count=True).to(value.dtype)
    # kthvalue would find it too, an order slower on a GPU
    return value.flatten(2).topk(k, dim=-1, sorted=False).values.amin(-1)


def _takes_triton(x: Tensor, impl: str, too_long: str | None = None) -> bool:
    """Return whether the Triton form runs; an explicit impl="triton" that cannot raises."""
    # one element: these kernels have no limit on the axis that `pick` takes for the head dim
    if pick(x[..., :1], impl) != "triton":
        return False
    why_not = "float64" if x.dtype == torch.float64 else too_long
    if why_not and impl == "triton":
        raise ValueError(f"impl='triton' cannot run: selection kernels have no {why_not}")
    return why_not is None
