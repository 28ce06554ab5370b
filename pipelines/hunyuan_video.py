"""HunyuanVideo: a joint sequence, padded text last; dual and single blocks in one row of layers.
FramePack puts what it remembers of earlier frames, at three scales, before the video."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.integrations.sequence import REST
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import patches, volume, volume_and_text

# patches of the history of FramePack, which is padded to whole ones
HISTORY = {
    "latents_clean": (1, 2, 2),
    "latents_history_2x": (2, 4, 4),
    "latents_history_4x": (4, 8, 8),
}


def history_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid of the new frames, and history before; image and text follow, maybe cut."""
    told = ((given.get(name), patch) for name, patch in HISTORY.items())
    before = sum(patches(latents, patch) for latents, patch in told if latents is not None)
    return *volume(module, given)[:3], before, REST


ATTENTION = r"(single_)?transformer_blocks\.\d+\.attn"
ADAPTERS = (
    Adapter(
        classes=("HunyuanVideoTransformer3DModel",),
        attention=ATTENTION,
        sizes=volume_and_text,
        mask="keys",
        text="suffix",
    ),
    Adapter(
        classes=("HunyuanVideoFramepackTransformer3DModel",),
        attention=ATTENTION,
        sizes=history_sizes,
        mask="keys",
        text="suffix",
        note="history is kept whole, as text is",
    ),
)

PIPELINES = {
    "SparseHunyuanVideoPipeline": "HunyuanVideoPipeline",
    "SparseHunyuanVideoImageToVideoPipeline": "HunyuanVideoImageToVideoPipeline",
    "SparseHunyuanSkyreelsImageToVideoPipeline": "HunyuanSkyreelsImageToVideoPipeline",
    "SparseHunyuanVideoFramepackPipeline": "HunyuanVideoFramepackPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
