"""LTX-Video and LTX-2: flat tokens, whose grid is told in numbers or by their coordinates.

Conditions stand in front of the video in LTX-Video, behind it in LTX-2; where they are pictures of
its size, they count as frames of it. Text has its own cross-attention; LTX-2's sound is left.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.integrations.sequence import REST
from dit_sparse.pipelines._adapter import drop_in


def told_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid of LTX-Video; with coordinates, conditions of any number stand before it."""
    if given.get("video_coords") is not None:
        return 1, 1, given["hidden_states"].shape[1], REST, 0
    return given["num_frames"], given["height"], given["width"], 0, 0


def told_sizes_2(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid of LTX-2; its numbers do not tell conditions, coordinates do."""
    if given.get("video_coords") is not None:
        return 1, 1, given["hidden_states"].shape[1], 0, 0
    return given["num_frames"], given["height"], given["width"], 0, 0


def coordinates(given: Mapping[str, Any]) -> Tensor | None:
    """Return positions [S, 3] from coordinates [B, 3, S], in LTX-2 [B, 3, S, 2] with their ends."""
    found = given.get("video_coords")
    if found is None:
        return None
    return (found if found.ndim == 3 else found[..., 0])[0].transpose(0, 1)


ADAPTERS = (
    Adapter(
        classes=("LTXVideoTransformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=told_sizes,
        ids=coordinates,
    ),
    Adapter(
        classes=("LTX2VideoTransformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=told_sizes_2,
        ids=coordinates,
        needs="0.37.0",
        note="a mask between video and references (IC-LoRA strength) keeps its calls dense",
    ),
)

PIPELINES = {
    "SparseLTXPipeline": "LTXPipeline",
    "SparseLTXImageToVideoPipeline": "LTXImageToVideoPipeline",
    "SparseLTXConditionPipeline": "LTXConditionPipeline",
    "SparseLTXI2VLongMultiPromptPipeline": "LTXI2VLongMultiPromptPipeline",
    "SparseLTX2Pipeline": "LTX2Pipeline",
    "SparseLTX2ImageToVideoPipeline": "LTX2ImageToVideoPipeline",
    "SparseLTX2ConditionPipeline": "LTX2ConditionPipeline",
    "SparseLTX2InContextPipeline": "LTX2InContextPipeline",
    "SparseLTX2HDRPipeline": "LTX2HDRPipeline",
    "SparseLTX2DFRPipeline": "LTX2DFRPipeline",
    "SparseLTX2DFRTemporalRefinePipeline": "LTX2DFRTemporalRefinePipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
