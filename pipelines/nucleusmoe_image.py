"""Nucleus-Image: queries of the picture alone, keys of picture and padded text."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import pictures


def shaped_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the picture from `img_shapes`, and text [B, S, C] behind it."""
    found = pictures(given)
    return *found[:3], 0, found[3] + given["encoder_hidden_states"].shape[1]


ADAPTERS = (
    Adapter(
        classes=("NucleusMoEImageTransformer2DModel",),
        attention=r"transformer_blocks\.\d+\.attn",
        sizes=shaped_sizes,
        mask="keys",
        text="suffix",
        needs="0.38.0",
    ),
)

PIPELINES = {
    "SparseNucleusMoEImagePipeline": "NucleusMoEImagePipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
