"""Helios: a chunk of frames, with those before it at three scales in front."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import patch, patches, volume

# how much coarser the history is cut than the chunk
HISTORY = {"short": 1, "mid": 2, "long": 4}


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid of the chunk from latents [B, C, T, H, W], and the history before it."""
    before = 0
    for name, scale in HISTORY.items():
        latents = given.get(f"latents_history_{name}")
        if latents is not None and given.get(f"indices_latents_history_{name}") is not None:
            before += patches(latents, (scale * p for p in patch(module)))
    return *volume(module, given)[:3], before, 0


ADAPTERS = (
    Adapter(
        classes=("HeliosTransformer3DModel",),
        attention=r"blocks\.\d+\.attn1",
        sizes=latent_sizes,
        needs="0.37.0",
        note="history is kept whole, as text is",
    ),
)

PIPELINES = {
    "SparseHeliosPipeline": "HeliosPipeline",
    "SparseHeliosPyramidPipeline": "HeliosPyramidPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
