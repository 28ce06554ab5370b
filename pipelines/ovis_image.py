"""Ovis-Image: FLUX.1 with another text encoder."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import text_and_packed

ADAPTERS = (
    Adapter(
        classes=("OvisImageTransformer2DModel",),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        sizes=text_and_packed,
        ids="img_ids",
        text="prefix",
        needs="0.36.0",
    ),
)

PIPELINES = {
    "SparseOvisImagePipeline": "OvisImagePipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
