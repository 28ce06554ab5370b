"""Look on while an enabled model generates: every sparse call with its q, k, v, plan and output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dit_sparse.errors import ArgumentError
from dit_sparse.integrations.session import Call, Session


@contextmanager
def watching(model: Any, see: Callable[[Call], None]) -> Iterator[None]:
    """Call `see` after every sparse attention call of an enabled pipeline or transformer.

    Dense calls are not seen: a schedule without dense steps and layers shows all. The tensors
    belong to the call; what `see` wants to keep it must copy.

        with watching(pipe, lambda call: print(call.layer, call.plan.density().item())):
            pipe("a red circle moves right")
    """
    session = _session(model)
    before, session.watch = session.watch, see
    try:
        yield
    finally:
        session.watch = before


def _session(model: Any) -> Session:
    """Return the session that `enable` made for a model."""
    from dit_sparse.integrations.seam import hook_of

    parts = [model] if isinstance(model, nn.Module) else getattr(model, "components", {}).values()
    for part in parts:
        if isinstance(part, nn.Module):
            hook = hook_of(getattr(part, "_orig_mod", part))
            if hook is not None:
                return hook.session
    raise ArgumentError(
        f"this {type(model).__name__} is not enabled; call dit_sparse.enable(model, method) first"
    )
