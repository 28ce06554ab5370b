"""Mochi: a joint sequence; every sample attends by itself, its text cut to what is valid."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume_and_rest

ADAPTERS = (
    Adapter(
        classes=("MochiTransformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=volume_and_rest,
        text="suffix",
        note="its processor asks for the length of each text, so no torch.compile with fullgraph",
    ),
)

PIPELINES = {"SparseMochiPipeline": "MochiPipeline"}
__getattr__ = drop_in(__name__, PIPELINES)
