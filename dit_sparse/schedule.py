"""When a method is sparse: dense for the first steps and layers, sparse after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, isfinite

from dit_sparse.errors import ArgumentError

PHASES = ("", "prefill", "decode", "both")


@dataclass(frozen=True)
class Schedule:
    """Dense first steps and dense layers.

    dense_steps: a number of denoising steps (int) or a share of them (float below 1).
    dense_layers: the first n layers (int) or the numbers of the layers (tuple); layers are
    counted over the self-attention layers of one transformer, from 0.
    phase: of a language model, where a method for text is sparse: in calls of several queries
    ("prefill"), of a single one ("decode") or "both"; "" for methods of diffusion models. Those
    for a prefill run on diffusion models, too, unless a stage needs causal attention.
    """

    dense_steps: int | float = 0
    dense_layers: int | tuple[int, ...] = 0
    phase: str = ""

    def __post_init__(self) -> None:
        steps, layers = self.dense_steps, self.dense_layers
        count = isinstance(steps, int | float) and not isinstance(steps, bool) and steps >= 0
        if not count or not isfinite(steps) or (steps >= 1 and steps != int(steps)):
            raise ArgumentError(
                f"schedule: dense_steps={steps!r} must be a count (0, 1, 2, ...) "
                "or a share of the steps below 1"
            )
        if isinstance(layers, list):  # TOML has no tuples
            object.__setattr__(self, "dense_layers", tuple(layers))
        numbers = layers if isinstance(layers, list | tuple) else (layers,)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ArgumentError(
                f"schedule: dense_layers={layers!r} must be the number of first layers or a list "
                "of layer numbers, counted from 0"
            )
        if self.phase not in PHASES:
            raise ArgumentError(f"schedule: phase={self.phase!r} must be one of {PHASES}")

    def over(self, other: Schedule) -> Schedule:
        """Return this schedule with the phase of another, where it names none of its own."""
        return replace(self, phase=self.phase or other.phase)

    def first_sparse_step(self, steps: int) -> int:
        """Return the number of dense steps at the start of a generation of `steps` steps."""
        if isinstance(self.dense_steps, float) and self.dense_steps < 1:
            return ceil(self.dense_steps * steps - 1e-9)
        return int(self.dense_steps)

    def at(self, layer: int, step: int, steps: int) -> str:
        """Return "dense" or "sparse" for this layer at this step."""
        layers = self.dense_layers
        dense_layer = layer < layers if isinstance(layers, int) else layer in layers
        return "dense" if dense_layer or step < self.first_sparse_step(steps) else "sparse"
