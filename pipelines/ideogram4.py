"""Ideogram 4: padding, text, picture in one stream, kept apart by a mask of segments."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.integrations.sequence import REST
from dit_sparse.pipelines._adapter import drop_in


def stream_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the length of the stream [B, S, C]; positions tell the picture, which stands last."""
    return 1, 1, given["hidden_states"].shape[1], REST, 0


ADAPTERS = (
    Adapter(
        classes=("Ideogram4Transformer2DModel",),
        attention=r"layers\.\d+\.attention",
        sizes=stream_sizes,
        ids="position_ids",
        mask="pairs",
        text="packed",
        needs="0.42.0",
        note="diffusers itself makes a mask of S x S",
    ),
)

PIPELINES = {
    "SparseIdeogram4Pipeline": "Ideogram4Pipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
