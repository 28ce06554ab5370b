"""HiDream-I1: picture, its padding (which counts; only squares have none), then text."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.integrations.sequence import REST
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import picture


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, H, W]; latents that were cut before stay dense."""
    if given["hidden_states"].ndim == 3:
        return 0, 0, 0, 0, 0
    return *picture(module, given)[:3], 0, REST


ADAPTERS = (
    Adapter(
        classes=("HiDreamImageTransformer2DModel",),
        attention=r"(double|single)_stream_blocks\.\d+\.block\.attn1",
        sizes=latent_sizes,
        timestep="timesteps",
        text="suffix",
    ),
)

PIPELINES = {
    "SparseHiDreamImagePipeline": "HiDreamImagePipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
