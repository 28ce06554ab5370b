"""FLUX.1: one joint sequence, text first; double and single blocks count as one row of layers."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in


def packed_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the lengths of packed latents [B, S, C] and text [B, S, C]; `img_ids` tell the rest."""
    return 1, 1, given["hidden_states"].shape[1], given["encoder_hidden_states"].shape[1]


ADAPTERS = (
    Adapter(
        classes=("FluxTransformer2DModel",),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        sizes=packed_sizes,
        ids="img_ids",
        text="prefix",
    ),
)

PIPELINES = {"SparseFluxPipeline": "FluxPipeline"}
__getattr__ = drop_in(__name__, PIPELINES)
