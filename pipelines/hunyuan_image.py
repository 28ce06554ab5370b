"""HunyuanImage 2.1, and its refiner with a frame axis: the picture, then one or two texts."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import picture, volume


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, H, W] or [B, C, T, H, W], and texts [B, S, C] behind it."""
    second = given.get("encoder_hidden_states_2")
    second = None if module.context_embedder_2 is None else second
    text = given["encoder_hidden_states"].shape[1] + (0 if second is None else second.shape[1])
    grid = picture if given["hidden_states"].ndim == 4 else volume
    return *grid(module, given)[:3], 0, text


ADAPTERS = (
    Adapter(
        classes=("HunyuanImageTransformer2DModel",),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        sizes=latent_sizes,
        mask="keys",
        text="suffix",
        needs="0.36.0",
    ),
)

PIPELINES = {
    "SparseHunyuanImagePipeline": "HunyuanImagePipeline",
    "SparseHunyuanImageRefinerPipeline": "HunyuanImageRefinerPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
