"""ERNIE-Image: the picture, then padded text."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import picture


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, H, W], and text [B, S, C] behind it."""
    return *picture(module, given)[:3], 0, given["text_bth"].shape[1]


ADAPTERS = (
    Adapter(
        classes=("ErnieImageTransformer2DModel",),
        attention=r"layers\.\d+\.self_attention",
        sizes=latent_sizes,
        mask="keys",
        text="suffix",
        needs="0.38.0",
    ),
)

PIPELINES = {
    "SparseErnieImagePipeline": "ErnieImagePipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
