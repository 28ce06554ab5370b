"""FLUX.1: one joint sequence, text first; Kontext has its reference picture behind the other."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import text_and_packed

ADAPTERS = (
    Adapter(
        classes=("FluxTransformer2DModel",),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        sizes=text_and_packed,
        ids="img_ids",
        text="prefix",
    ),
)

PIPELINES = {
    "SparseFluxPipeline": "FluxPipeline",
    "SparseFluxImg2ImgPipeline": "FluxImg2ImgPipeline",
    "SparseFluxInpaintPipeline": "FluxInpaintPipeline",
    "SparseFluxKontextPipeline": "FluxKontextPipeline",
    "SparseFluxKontextInpaintPipeline": "FluxKontextInpaintPipeline",
    "SparseFluxFillPipeline": "FluxFillPipeline",
    "SparseFluxControlPipeline": "FluxControlPipeline",
    "SparseFluxControlImg2ImgPipeline": "FluxControlImg2ImgPipeline",
    "SparseFluxControlInpaintPipeline": "FluxControlInpaintPipeline",
    "SparseFluxControlNetPipeline": "FluxControlNetPipeline",
    "SparseFluxControlNetImg2ImgPipeline": "FluxControlNetImg2ImgPipeline",
    "SparseFluxControlNetInpaintPipeline": "FluxControlNetInpaintPipeline",
    "SparseVisualClozePipeline": "VisualClozePipeline",
    "SparseVisualClozeGenerationPipeline": "VisualClozeGenerationPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
