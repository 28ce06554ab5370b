"""EasyAnimate: a joint sequence, one or two texts first."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, T, H, W], and texts [B, S, C] before it."""
    texts = given["encoder_hidden_states"], given.get("encoder_hidden_states_t5")
    before = sum(text.shape[1] for text in texts if text is not None)
    return *volume(module, given)[:3], before, 0


ADAPTERS = (
    Adapter(
        classes=("EasyAnimateTransformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=latent_sizes,
        text="prefix",
    ),
)

PIPELINES = {
    "SparseEasyAnimatePipeline": "EasyAnimatePipeline",
    "SparseEasyAnimateInpaintPipeline": "EasyAnimateInpaintPipeline",
    "SparseEasyAnimateControlPipeline": "EasyAnimateControlPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
