"""What a parameter takes: the type of its default, a count, a share, the name of kernels."""

from __future__ import annotations

from math import floor
from typing import Any

from dit_sparse.errors import ArgumentError, MissingDependencyError
from dit_sparse.kernels.choice import IMPLS, triton_missing
from dit_sparse.kernels.contract import QUANTS


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


def checked(method: str, given: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters given to a method, hashable; raise for the first that it cannot take.

    known: its parameters and their defaults.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        them = ", ".join(f"{key}={value!r}" for key, value in known.items()) or "none"
        raise ArgumentError(f"method {method!r} has no parameter {unknown[0]!r}; it takes: {them}")
    found = {key: as_tuples(value) for key, value in given.items()}
    for key, value in found.items():
        if not like(value, known[key]):
            like_it = f"method {method!r} needs a value like {known[key]!r}"
            raise ArgumentError(f"{key}={given[key]!r}: {like_it}")
    return found


def check_count(name: str, value: object) -> None:
    """Raise unless `value` is a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise ArgumentError(f"{name}={value!r} must be a count of tokens, at least 1")


def check_share(name: str, value: float, zero: str = "") -> None:
    """Raise unless `value` is a share in (0, 1], or 0 where `zero` says what that means."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or not (value or zero):
        rule = f"from 0 to 1 (0: {zero})" if zero else "above 0 and at most 1"
        raise ArgumentError(f"{name}={value!r} must be a share {rule}")


def check_impl(impl: str) -> None:
    """Raise unless `impl` names kernels that this machine has."""
    if impl not in IMPLS:
        raise ArgumentError(f"impl={impl!r} is not known; use one of {', '.join(IMPLS)}")
    if impl == "triton" and triton_missing():
        raise MissingDependencyError(f"impl={impl!r} cannot run: {triton_missing()}")


def check_quant(quant: str) -> None:
    """Raise unless `quant` is a number format."""
    if quant not in QUANTS:
        raise ArgumentError(f"quant={quant!r} is not known; use one of {', '.join(QUANTS)}")


def quota(share: float, n: int, least: int = 1) -> int:
    """Return how many of n things a share stands for: floor(share * n), or `least`.

    >>> quota(0.29, 100)
    29
    """
    # the small term undoes products such as 0.29 * 100 = 28.999...
    return max(least, floor(share * n + 1e-6))
