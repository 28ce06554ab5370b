"""Stable Diffusion 3 and 3.5: picture, then text; 3.5 medium also attends to the picture alone."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import picture_and_text

ADAPTERS = (
    Adapter(
        classes=("SD3Transformer2DModel",),
        attention=r"transformer_blocks\.\d+\.attn2?",
        sizes=picture_and_text,
        calls=("box",),
        text="suffix",
    ),
)

PIPELINES = {
    "SparseStableDiffusion3Pipeline": "StableDiffusion3Pipeline",
    "SparseStableDiffusion3Img2ImgPipeline": "StableDiffusion3Img2ImgPipeline",
    "SparseStableDiffusion3InpaintPipeline": "StableDiffusion3InpaintPipeline",
    "SparseStableDiffusion3ControlNetPipeline": "StableDiffusion3ControlNetPipeline",
    "SparseStableDiffusion3ControlNetInpaintingPipeline": (
        "StableDiffusion3ControlNetInpaintingPipeline"
    ),
}
__getattr__ = drop_in(__name__, PIPELINES)
