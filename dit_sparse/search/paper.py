"""The greedy search of Sparse-vDiT (arXiv 2506.03065), as its paper gives it.

    1. at every step and layer, with the input that the choices before have led to:
       O_0 dense, O_i of each mode i
    2. L_i = MSE(O_i, O_0) + penalty * (1 - S_i)      per head, S_i the mode's sparsity
    3. all L_i > eps: the head stays dense; else it takes the mode of least L_i, and its output
       goes on into the next layer

The mean of the squares goes over samples, tokens and channels, in float32. Of two CFG branches the
first decides for both; several prompts each follow choices of their own, and their tables are
joined by majority, ties for the earlier letter: the paper gives neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dit_sparse.core import QKV, Context
from dit_sparse.search.candidates import Candidate
from dit_sparse.search.measure import run


@dataclass
class Greedy:
    """Chooses while a generation runs; an argument of `observing`.

    candidates: dense, then the modes. chosen: (step, layer) -> candidate number of each head [H].
    """

    candidates: tuple[Candidate, ...]
    eps: float = 1.0
    penalty: float = 0.5
    chosen: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, x: QKV, ctx: Context, out: Tensor) -> Tensor:
        key, new = (ctx.step, ctx.layer), (ctx.step, ctx.layer) not in self.chosen
        outs, losses = [out], []
        for candidate in self.candidates[1:]:
            outs.append(run(candidate, x, ctx))
            if new:
                wide = torch.promote_types(out.dtype, torch.float32)
                mse = (outs[-1].to(wide) - out.to(wide)).square().mean((0, 2, 3))
                fresh = replace(ctx, heads=None, state={}, cache={})
                losses.append(mse + self.penalty * candidate.method.plan(x, fresh).density())
        if new:
            least, which = torch.stack(losses).min(0)
            self.chosen[key] = torch.where(least > self.eps, 0, which + 1)
        for number, other in enumerate(outs[1:], 1):
            out = torch.where((self.chosen[key] == number)[:, None, None], other, out)
        return out

    def told(self) -> list[list[str]]:
        """Return the letters of the heads, [steps][layers]; waits for the device."""
        rows: dict[int, list[str]] = {}
        for (step, _), choice in sorted(self.chosen.items()):
            row = "".join(self.candidates[n].letter for n in choice.tolist())
            rows.setdefault(step, []).append(row)
        return list(rows.values())


def majority(tables: Sequence[list[list[str]]], letters: str) -> list[list[str]]:
    """Join the tables [steps][layers] of several prompts, head by head."""

    def most(column: tuple[str, ...]) -> str:
        votes = Counter(column)
        return max(letters, key=lambda c: votes[c])

    return [
        ["".join(map(most, zip(*rows, strict=True))) for rows in zip(*steps, strict=True)]
        for steps in zip(*tables, strict=True)
    ]
