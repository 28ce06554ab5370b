"""Chroma: FLUX.1 with a mask on text; the mask is one of pairs [B, 1, S, S]."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import text_and_packed

ADAPTERS = (
    Adapter(
        classes=("ChromaTransformer2DModel",),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        sizes=text_and_packed,
        ids="img_ids",
        mask="flags",
        text="prefix",
        note="diffusers adds its mask of 1 and 0 to the logits, where padding still counts; while "
        "sparse, padding is left out, as in the original model",
    ),
)

PIPELINES = {
    "SparseChromaPipeline": "ChromaPipeline",
    "SparseChromaImg2ImgPipeline": "ChromaImg2ImgPipeline",
    "SparseChromaInpaintPipeline": "ChromaInpaintPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
