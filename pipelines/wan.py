"""Wan 2.1 and 2.2 and what grew from it: text has its own cross-attention, `blocks.N.attn1` sees
the video alone. VACE's two stacks of blocks see the same grid; Animate's face blocks are left."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume

ADAPTERS = (
    Adapter(
        classes=("WanTransformer3DModel", "WanVACETransformer3DModel"),
        attention=r"(vace_)?blocks\.\d+\.attn1",
        sizes=volume,
    ),
    Adapter(
        classes=("WanAnimateTransformer3DModel", "ChronoEditTransformer3DModel"),
        attention=r"blocks\.\d+\.attn1",
        sizes=volume,
        needs="0.36.0",
    ),
)
REFUSED = {
    "WanAnimate2Transformer3DModel": "it denoises through a FlexAttention mask of its own, which "
    "shows every frame its own reference frame only",
}

PIPELINES = {
    "SparseWanPipeline": "WanPipeline",
    "SparseWanImageToVideoPipeline": "WanImageToVideoPipeline",
    "SparseWanVideoToVideoPipeline": "WanVideoToVideoPipeline",
    "SparseWanVACEPipeline": "WanVACEPipeline",
    "SparseWanAnimatePipeline": "WanAnimatePipeline",
    "SparseLucyEditPipeline": "LucyEditPipeline",
    "SparseChronoEditPipeline": "ChronoEditPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
