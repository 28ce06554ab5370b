"""What a candidate in one layer does to the model's prediction.

    effect(s, n, c) = |f_nc - f|^2 / |f|^2

f is what the transformer returns at step s of a dense generation, f_nc what the same call returns
with candidate c in layer n and dense attention in all others. So it is known how much of an
attention error the rest of the network takes up, which no norm of the error tells: layers and
kinds of error differ by a factor of ten. Of two CFG branches the first is asked.

A step costs layers x candidates calls of the transformer. Memory: one further output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dit_sparse.core import QKV, Context
from dit_sparse.integrations.diffusers import transformers_of
from dit_sparse.search.candidates import Candidate
from dit_sparse.search.measure import anew


@dataclass
class Effects:
    """Asks the model while a generation runs under `observing(self)` and within `asking`.

    steps: at which it asks. tell: hears of each step, with its effects [layers][C], when it is
    done. asked: hears of each layer.
    """

    candidates: tuple[Candidate, ...]
    steps: frozenset[int]
    tell: Callable[[int, list[list[float]]], None]
    asked: Callable[[], None] = lambda: None
    _cell: tuple[int, Candidate] | None = None
    _layers: dict[int, set[int]] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)
    _step: int = -1

    def __call__(self, x: QKV, ctx: Context, out: Tensor) -> Tensor:
        if self._cell is None:
            self._step = ctx.step
            self._layers.setdefault(ctx.step, set()).add(ctx.layer)
            return out
        layer, candidate = self._cell
        return anew(candidate, x, ctx) if ctx.layer == layer else out

    @contextmanager
    def asking(self, pipe: Any) -> Iterator[None]:
        """Ask while the transformers of a pipeline run."""
        hooks = [
            root.register_forward_hook(self._after, with_kwargs=True)
            for root in transformers_of(pipe).values()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _after(self, root: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Call the transformer again for every layer and candidate, at a step of ours."""
        step = self._step
        if self._cell is not None or step not in self.steps or step in self._done:
            return
        self._done.add(step)
        try:
            size, layers = _squares(output[0]), sorted(self._layers[step])
            found = [self._row(root, args, kwargs, output[0], size, n) for n in layers]
        finally:
            self._cell = None
        self.tell(step, found)

    def _row(
        self, root: nn.Module, args: Any, kwargs: Any, truth: Tensor, size: float, layer: int
    ) -> list[float]:
        """Return the effects of all candidates in a layer, where `truth` has this sum of squares;
        waits for the device."""
        row = [0.0]
        for candidate in self.candidates[1:]:
            self._cell = layer, candidate
            row.append(_squares(root(*args, **kwargs)[0] - truth) / size)
        self.asked()
        return [float(f"{value:.4g}") for value in row]


def _squares(x: Tensor) -> float:
    """Return the sum of squares of all values, from float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return float(torch.linalg.vector_norm(x, dtype=wide).square())
