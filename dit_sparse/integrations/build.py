"""From what `enable` was given to a method: a name, a value, a profile or the path of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.profile import Profile, shipped
from dit_sparse.registry import get
from dit_sparse.schedule import Schedule


def build(
    method: str | Path | Method | Profile,
    schedule: Schedule | None,
    quant: str,
    params: dict[str, Any],
) -> tuple[Method, str, Profile | None]:
    """Return the method, its label, and the profile that would build it again.

    method: a registered name or a shipped profile's, a value, a profile or the path of one.
    schedule: instead of the method's own, None for that. quant: "none" keeps the number format that
    a value or a profile brings.
    """
    if schedule is not None and not isinstance(schedule, Schedule):
        raise ArgumentError(f"schedule={schedule!r} must be a dit_sparse.Schedule")
    if isinstance(method, str) and (method.endswith(".toml") or method in shipped()):
        method = Path(method)
    if isinstance(method, Path):
        method = Profile.load(method)
    if isinstance(method, Method):
        if params:
            raise ArgumentError(
                f"{next(iter(params))!r} was given with a Method value; build it with "
                "dit_sparse.get(name, ...) instead"
            )
        value = method if quant == "none" else method.with_quant(quant)
        return value.with_schedule(schedule), repr(method), None
    if isinstance(method, str):
        value = get(method, **params)
        method = Profile("", method, params)
    elif isinstance(method, Profile):
        value = method.build(**params)
        # changed settings were not measured
        measured = {} if params or schedule else method.measured
        merged = {**method.params, **params}
        when = method.when(params)
        method = replace(method, params=merged, measured=measured, schedule=when)
    else:
        raise ArgumentError(f"method={method!r} must be a name, a Method, a Profile or its path")
    if schedule is not None:
        layers = schedule.dense_layers
        layers = layers if isinstance(layers, int) else list(layers)
        when = {"dense_steps": schedule.dense_steps, "dense_layers": layers}
        method = replace(method, schedule=when)
    if quant != "none":
        value, method = value.with_quant(quant), replace(method, quant=quant)
    shown = ", ".join(f"{name}={value!r}" for name, value in method.params.items())
    label = f"{method.method}({shown})" if shown else method.method
    label += "" if method.quant == "none" else f" in {method.quant}"
    return value.with_schedule(schedule), label, method
