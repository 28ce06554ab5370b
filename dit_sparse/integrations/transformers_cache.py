"""Whether a layer's cache only grew since the layer's last call.

    layer begins ─ hook ─▶ is the cache's tensor the one that the last call attended to, unwritten?
    cache grows, attention function ─▶ the answer; this call's tensor is the last one from now on

Only then may a method use what it keeps of earlier keys: a reordering of beams, a crop or another
cache puts another tensor in its place. A compiled model asks nobody, and is never told so.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn


class Growth:
    """The keys that each layer of a model saw last."""

    def __init__(self) -> None:
        # layer -> the tensor, and how often it had been written
        self.last: dict[int, tuple[weakref.ref[Tensor], int | None]] = {}
        self.same: set[int] = set()

    def before(self, layer: int, keys: Tensor | None) -> None:
        """Hear what a layer's cache holds before this call's own keys; None: nothing known."""
        seen, version = self.last.get(layer, (None, None))
        known = seen is not None and keys is not None and seen() is keys
        self.same.discard(layer)
        if known and keys is not None and _written(keys) == version:
            self.same.add(layer)

    def after(self, layer: int, keys: Tensor) -> bool:
        """Hear all keys of the call; tell whether they are those of the last call and new ones."""
        only_grew = layer in self.same
        self.same.discard(layer)
        self.last[layer] = weakref.ref(keys), _written(keys)
        return only_grew


def cached_keys(module: nn.Module, kwargs: dict[str, Any]) -> Tensor | None:
    """Return the keys that an attention layer's cache holds, None where that is not known."""
    layers: Any = getattr(kwargs.get("past_key_values"), "layers", ())
    number: Any = module.layer_idx
    keys = getattr(layers[number], "keys", None) if number < len(layers) else None
    return keys if isinstance(keys, Tensor) else None


def _written(keys: Tensor) -> int | None:
    """Return how often a tensor was written in place; None in inference mode, which counts none."""
    return None if keys.is_inference() else keys._version
