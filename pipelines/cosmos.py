"""Cosmos. 1, 2 and 2.5: text and, in 2.5, an image have their own cross-attention. 3: text attends
to itself, causally; the video, and sound and actions behind it, to text and to each other."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume


def packed_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from `vision_token_shapes`, and what stands before and behind the video."""
    (frames, height, width), *_ = given["vision_token_shapes"]
    behind = given["sequence_length"] - given["und_len"] - frames * height * width
    return frames, height, width, given["und_len"], behind


ADAPTERS = (
    Adapter(
        classes=("CosmosTransformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=volume,
        note="the control network of 2.5 Transfer is a model of its own and stays dense; only with "
        "PyTorch's attention (attention_backend native, the default)",
    ),
    Adapter(
        classes=("Cosmos3OmniTransformer",),
        attention=r"layers\.\d+\.self_attn",
        sizes=packed_sizes,
        timestep="vision_timesteps",
        calls=("text",),
        text="prefix",
        needs="0.40.0",
    ),
)

PIPELINES = {
    "SparseCosmosTextToWorldPipeline": "CosmosTextToWorldPipeline",
    "SparseCosmosVideoToWorldPipeline": "CosmosVideoToWorldPipeline",
    "SparseCosmos2TextToImagePipeline": "Cosmos2TextToImagePipeline",
    "SparseCosmos2VideoToWorldPipeline": "Cosmos2VideoToWorldPipeline",
    "SparseCosmos2_5_PredictBasePipeline": "Cosmos2_5_PredictBasePipeline",
    "SparseCosmos2_5_TransferPipeline": "Cosmos2_5_TransferPipeline",
    "SparseCosmos3OmniPipeline": "Cosmos3OmniPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
