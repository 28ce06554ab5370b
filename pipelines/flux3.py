"""FLUX.3: each kind of token attends alone in the first blocks, then text, picture, references."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes


def packed_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the lengths of text, packed latents and references [B, S, C]; positions tell more."""
    names = "hidden_states", "encoder_hidden_states", "image_cond_hidden_states"
    found = [given.get(name) for name in names]
    shown, text, behind = (0 if x is None else x.shape[1] for x in found)
    return 1, 1, shown, text, behind


ADAPTERS = (
    Adapter(
        classes=("Flux3Transformer2DModel",),
        attention=r"(mode_blocks\.image|single_transformer_blocks)\.\d+\.attn",
        sizes=packed_sizes,
        ids="img_ids",
        calls=("box",),
        text="prefix",
        needs="0.42.0",
        note="text and references alone, in their own first blocks, stay dense",
    ),
)
