"""Lumina Image 2.0: text of its own length in front of each picture; Lumina-Next: no joint text."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.integrations.sequence import REST
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import picture


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, H, W]; valid text stands before it."""
    return *picture(module, given)[:3], REST, 0


ADAPTERS = (
    Adapter(
        classes=("Lumina2Transformer2DModel",),
        attention=r"layers\.\d+\.attn",
        sizes=latent_sizes,
        mask="keys",
        text="prefix",
    ),
    Adapter(
        classes=("LuminaNextDiT2DModel",),
        attention=r"layers\.\d+\.attn1",
        sizes=picture,
        mask="keys",
    ),
)

PIPELINES = {
    "SparseLumina2Pipeline": "Lumina2Pipeline",
    "SparseLuminaPipeline": "LuminaPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
