"""Partitions that alternate over the layers: frame slabs, spatial columns, space-time boxes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from dit_sparse.constants import made_once
from dit_sparse.core import QKV, Blocks, Context, Grid, Known, Layout
from dit_sparse.errors import ArgumentError

AXES = ("frames", "height", "width")


@dataclass(frozen=True)
class Partitions:
    """Key blocks of a partition that the layer chooses; query blocks of one token, same order.

    Layer l uses cycle[l % len(cycle)]: "1" = slabs of whole frames, "2" = columns, a patch of the
    picture over all frames, "3" = boxes. A block is contiguous, in raster order inside and outside.
    unit: what slabs, columns (height, width) and boxes (frames, height, width) count: the "parts"
    of an axis, at most its length, or the "tokens" of a chunk, which must fit the grid. Both cut an
    axis into nearly equal parts, ceil(axis / chunk) of them for a chunk.
    Without a grid every partition is its number of parts of equal raster blocks.
    Used by VMoBA (8, 6 x 8 and 3 x 3 x 8 parts).
    """

    cycle: str = "123"
    unit: str = "parts"
    slabs: int = 8
    columns: tuple[int, int] = (6, 8)
    boxes: tuple[int, int, int] = (3, 3, 8)

    def __post_init__(self) -> None:
        if not (isinstance(self.cycle, str) and self.cycle and set(self.cycle) <= set("123")):
            raise ArgumentError(
                f"cycle={self.cycle!r} must name a partition for each layer in turn by the digits "
                "1, 2 and 3, e.g. '123'"
            )
        if self.unit not in ("parts", "tokens"):
            raise ArgumentError(f"unit={self.unit!r} must be 'parts' or 'tokens'")
        for name, axes in (("slabs", AXES[:1]), ("columns", AXES[1:]), ("boxes", AXES)):
            given = getattr(self, name)
            if isinstance(given, list):  # TOML has no tuples
                given = tuple(given)
                object.__setattr__(self, name, given)
            counts = given if isinstance(given, tuple) and name != "slabs" else (given,)
            if len(counts) != len(axes) or not all(type(n) is int and n > 0 for n in counts):
                raise ArgumentError(
                    f"{name}={given!r} must be whole numbers of at least 1, one for each of "
                    f"{', '.join(axes)}"
                )

    def check(self, known: Known) -> None:
        """Raise when a chunk of tokens is larger than the grid."""
        if known.grid is not None:
            for layer in known.layers:
                self._parts(known.grid, self._numbers(layer))

    def __call__(self, x: QKV, ctx: Context) -> Layout:
        if ctx.causal:
            raise ArgumentError(
                "causal=True: the mean key of a query's own block holds future keys; use a causal "
                "method, e.g. 'sla'"
            )
        numbers = self._numbers(ctx.layer)
        if ctx.grid is not None:
            return _cut(ctx.grid, self._parts(ctx.grid, numbers), str(x.q.device))
        tokens = x.k.shape[2]
        if x.q.shape[2] != tokens:
            raise ArgumentError(
                f"q has {x.q.shape[2]} tokens and k {tokens}: each query has an own key block only "
                "in self-attention"
            )
        if self.unit == "tokens":
            raise ArgumentError("unit='tokens' cuts the axes of a grid; without one use 'parts'")
        size = -(-tokens // min(tokens, prod(n or 1 for n in numbers)))
        return Layout.uniform(x, 1, size)

    def _numbers(self, layer: int) -> tuple[int, int, int]:
        """Return the numbers of the layer's partition for each axis; 0 leaves an axis whole."""
        kind = self.cycle[layer % len(self.cycle)]
        if kind == "1":
            return (self.slabs, 0, 0)
        return (0, *self.columns) if kind == "2" else self.boxes

    def _parts(self, grid: Grid, numbers: tuple[int, int, int]) -> tuple[int, ...]:
        """Return how many parts each axis of the grid is cut into."""
        if self.unit == "parts":
            return tuple(min(n or 1, side) for n, side in zip(numbers, grid.sides, strict=True))
        name = "columns" if not numbers[0] else "boxes" if numbers[1] else "slabs"
        for axis, n, side in zip(AXES, numbers, grid.sides, strict=True):
            if n > side:
                raise ArgumentError(
                    f"{name}={getattr(self, name)!r}: a chunk of {n} is larger than the grid's "
                    f"{axis} {side}; use at most {side}, or unit='parts'"
                )
        return tuple(-(-side // n) if n else 1 for n, side in zip(numbers, grid.sides, strict=True))


@made_once(32)
def _cut(grid: Grid, parts: tuple[int, ...], device: str) -> Layout:
    """Return the layout of a grid."""
    size, order, ends = grid.boxes(parts, device)
    if parts[1:] == (1, 1):
        order = None  # slabs of whole frames stand in a row already
    return Layout(
        Blocks.with_text(grid, 1, order, device=device),
        Blocks.with_text(grid, size, order, ends, device),
    )
