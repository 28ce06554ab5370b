"""Mochi: a joint sequence; every sample attends by itself, its text cut to what is valid."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.integrations.sequence import REST
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, T, H, W]; text behind it is what each sample has left."""
    return *volume(module, given)[:4], REST


ADAPTERS = (
    Adapter(
        classes=("MochiTransformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn1",
        sizes=latent_sizes,
        text="suffix",
        note="its processor asks for the length of each text, so no torch.compile with fullgraph",
    ),
)

PIPELINES = {"SparseMochiPipeline": "MochiPipeline"}
__getattr__ = drop_in(__name__, PIPELINES)
