"""Motif-Video: a joint sequence, image and padded text last; the last blocks attend to the video
and, in the place of text, to the video that the blocks before them made."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume_and_rest

ADAPTERS = (
    Adapter(
        classes=("MotifVideoTransformer3DModel",),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        sizes=volume_and_rest,
        mask="keys",
        calls=("two boxes",),
        text="suffix",
        needs="0.39.0",
    ),
)

PIPELINES = {
    "SparseMotifVideoPipeline": "MotifVideoPipeline",
    "SparseMotifVideoImage2VideoPipeline": "MotifVideoImage2VideoPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
