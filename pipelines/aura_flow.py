"""AuraFlow: register tokens and text, then the picture."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import picture


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, H, W], and registers and text [B, S, C] before it."""
    box, text = picture(module, given)[:3], given["encoder_hidden_states"].shape[1]
    return *box, module.register_tokens.shape[1] + text, 0


ADAPTERS = (
    Adapter(
        classes=("AuraFlowTransformer2DModel",),
        attention=r"(joint|single)_transformer_blocks\.\d+\.attn",
        sizes=latent_sizes,
        text="prefix",
    ),
)

PIPELINES = {
    "SparseAuraFlowPipeline": "AuraFlowPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
