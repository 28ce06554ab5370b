"""LongCat-Image: text first; the picture to edit stands behind the other."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import text_and_packed

ADAPTERS = (
    Adapter(
        classes=("LongCatImageTransformer2DModel",),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        sizes=text_and_packed,
        ids="img_ids",
        text="prefix",
        needs="0.37.0",
    ),
)

PIPELINES = {
    "SparseLongCatImagePipeline": "LongCatImagePipeline",
    "SparseLongCatImageEditPipeline": "LongCatImageEditPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
