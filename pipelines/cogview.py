"""CogView 3 Plus and 4, and GLM-Image, which may keep keys of other pictures: text first."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import picture, text_and_picture


def cached_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, H, W]; kept keys and text [B, S, C] stand before it."""
    box, text = picture(module, given)[:3], given["encoder_hidden_states"].shape[1]
    caches = given.get("kv_caches")
    keys = caches[0].k_caches if caches is not None and caches[0].mode == "read" else []
    return *box, text + (keys[0].shape[1] if keys else 0), 0


ADAPTERS = (
    Adapter(
        classes=("CogView3PlusTransformer2DModel", "CogView4Transformer2DModel"),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=text_and_picture,
        text="prefix",
    ),
    Adapter(
        classes=("GlmImageTransformer2DModel",),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=cached_sizes,
        text="prefix",
        needs="0.37.0",
    ),
)

PIPELINES = {
    "SparseCogView3PlusPipeline": "CogView3PlusPipeline",
    "SparseCogView4Pipeline": "CogView4Pipeline",
    "SparseCogView4ControlPipeline": "CogView4ControlPipeline",
    "SparseGlmImagePipeline": "GlmImagePipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
