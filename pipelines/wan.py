"""Wan 2.1 and 2.2: text has its own cross-attention, `blocks.N.attn1` sees the video alone."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, T, H, W] and the patch size."""
    frames, height, width = given["hidden_states"].shape[2:]
    t, h, w = module.config.patch_size
    return frames // t, height // h, width // w, 0


ADAPTERS = (
    Adapter(
        classes=("WanTransformer3DModel",),
        attention=r"blocks\.\d+\.attn1",
        sizes=latent_sizes,
    ),
)

PIPELINES = {"SparseWanPipeline": "WanPipeline"}
__getattr__ = drop_in(__name__, PIPELINES)
