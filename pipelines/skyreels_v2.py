"""SkyReels V2, with and without diffusion forcing: Wan's attention, time steps per frame. Its
asynchronous mode (`num_frame_per_block > 1`) masks by frames and stays dense."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume

ADAPTERS = (
    Adapter(
        classes=("SkyReelsV2Transformer3DModel",),
        attention=r"blocks\.\d+\.attn1",
        sizes=volume,
        note="causal blocks of frames (asynchronous mode) stay dense",
    ),
)

PIPELINES = {
    "SparseSkyReelsV2Pipeline": "SkyReelsV2Pipeline",
    "SparseSkyReelsV2ImageToVideoPipeline": "SkyReelsV2ImageToVideoPipeline",
    "SparseSkyReelsV2DiffusionForcingPipeline": "SkyReelsV2DiffusionForcingPipeline",
    "SparseSkyReelsV2DiffusionForcingImageToVideoPipeline": (
        "SkyReelsV2DiffusionForcingImageToVideoPipeline"
    ),
    "SparseSkyReelsV2DiffusionForcingVideoToVideoPipeline": (
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline"
    ),
}
__getattr__ = drop_in(__name__, PIPELINES)
