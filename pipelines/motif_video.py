"""Motif-Video: a joint sequence, image and padded text last; the last blocks attend to the video
and, in the place of text, to the video that the blocks before them made."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.integrations.sequence import REST
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, T, H, W]; what is behind it differs between layers."""
    return *volume(module, given)[:4], REST


ADAPTERS = (
    Adapter(
        classes=("MotifVideoTransformer3DModel",),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        sizes=latent_sizes,
        mask="keys",
        calls=("two boxes",),
        text="suffix",
        needs="0.39.0",
    ),
)

PIPELINES = {
    "SparseMotifVideoPipeline": "MotifVideoPipeline",
    "SparseMotifVideoImage2VideoPipeline": "MotifVideoImage2VideoPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
