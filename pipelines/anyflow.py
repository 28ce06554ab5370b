"""AnyFlow: Wan's attention, frames in the second axis."""

from dit_sparse.integrations.adapters import Adapter
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import frames_first

ADAPTERS = (
    Adapter(
        classes=("AnyFlowTransformer3DModel",),
        attention=r"blocks\.\d+\.attn1",
        sizes=frames_first,
        needs="0.39.0",
    ),
)
REFUSED = {
    "AnyFlowFARTransformer3DModel": "it generates chunk by chunk by causal FlexAttention masks "
    "of its own and a cache of keys"
}

PIPELINES = {"SparseAnyFlowPipeline": "AnyFlowPipeline"}
__getattr__ = drop_in(__name__, PIPELINES)
