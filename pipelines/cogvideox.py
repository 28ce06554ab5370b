"""CogVideoX 1.0 and 1.5, and ConsisID on top of it: text first, frames in the second axis."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, T, C, H, W] and the patch size; 1.5 joins frames as well."""
    frames, _, height, width = given["hidden_states"].shape[1:]
    t, p = module.config.get("patch_size_t") or 1, module.config.patch_size
    return -(-frames // t), height // p, width // p, given["encoder_hidden_states"].shape[1], 0


ADAPTERS = (
    Adapter(
        classes=("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=latent_sizes,
        text="prefix",
    ),
)

PIPELINES = {
    "SparseCogVideoXPipeline": "CogVideoXPipeline",
    "SparseCogVideoXImageToVideoPipeline": "CogVideoXImageToVideoPipeline",
    "SparseCogVideoXVideoToVideoPipeline": "CogVideoXVideoToVideoPipeline",
    "SparseCogVideoXFunControlPipeline": "CogVideoXFunControlPipeline",
    "SparseConsisIDPipeline": "ConsisIDPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
