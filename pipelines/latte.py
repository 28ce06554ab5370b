"""Latte: attention within frames, which is ours, in turn with attention over time, which is not."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume


def frame_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid of one frame from latents [B, C, T, H, W]."""
    return 1, *volume(module, given)[1:]


ADAPTERS = (
    Adapter(
        classes=("LatteTransformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=frame_sizes,
        note="attention over time sees one token of each frame and stays dense",
    ),
)

PIPELINES = {"SparseLattePipeline": "LattePipeline"}
__getattr__ = drop_in(__name__, PIPELINES)
