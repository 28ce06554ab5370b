"""Nucleus-Image: queries of the picture alone, keys of picture and padded text."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes, joined
from dit_sparse.pipelines._adapter import drop_in


def shaped_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the picture from `img_shapes`, (frames, height, width), and text [B, S, C]."""
    shapes = given["img_shapes"]
    shapes = shapes[0] if isinstance(shapes, list) else shapes
    found = joined(shapes if isinstance(shapes, list) else [shapes])
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
