"""What a method's parameter takes, read from its default."""

from __future__ import annotations

from typing import Any


def as_tuples(value: Any) -> Any:
    """Return TOML's lists, also lists of lists, as tuples: a method must be hashable."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def like(value: Any, default: Any) -> bool:
    """Tell whether a value has the type of a parameter's default."""
    if default is None:
        return True
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, tuple):
        # how many there must be, the method knows
        kind = default[0] if default else None
        return isinstance(value, tuple) and all(like(v, kind) for v in value)
    if isinstance(value, tuple) and isinstance(default, int):
        return all(isinstance(n, int) for n in value)  # these layers instead of the first n
    if isinstance(value, tuple) and isinstance(default, str):
        return all(isinstance(n, str | tuple) for n in value)  # a row per layer instead of one
    # a count may be a share and the other way round: the method knows
    return isinstance(value, int | float if isinstance(default, int | float) else type(default))
