"""Krea 2: one stream, padded text first."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import text_and_packed

ADAPTERS = (
    Adapter(
        classes=("Krea2Transformer2DModel",),
        attention=r"transformer_blocks\.\d+\.attn",
        sizes=text_and_packed,
        ids="position_ids",
        mask="keys",
        text="prefix",
        needs="0.42.0",
    ),
)

PIPELINES = {
    "SparseKrea2Pipeline": "Krea2Pipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
