"""PRX: queries of the picture alone, keys of padded text and picture."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import text_and_picture

ADAPTERS = (
    Adapter(
        classes=("PRXTransformer2DModel",),
        attention=r"blocks\.\d+\.attention",
        sizes=text_and_picture,
        mask="keys",
        text="prefix",
        needs="0.36.0",
    ),
)

PIPELINES = {
    "SparsePRXPipeline": "PRXPipeline",
    "SparsePRXPixelPipeline": "PRXPixelPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
