"""Allegro: text has its own cross-attention."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume

ADAPTERS = (
    Adapter(
        classes=("AllegroTransformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=volume,
    ),
)

PIPELINES = {"SparseAllegroPipeline": "AllegroPipeline"}
__getattr__ = drop_in(__name__, PIPELINES)
