"""HunyuanVideo 1.5: a joint sequence; behind the video stand image, glyph and text tokens, padding
last. Its processor makes a mask [B, 1, S, S] in every layer; while enabled, one of keys."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import volume


def latent_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, T, H, W]; image and two texts [B, S, C] come behind it."""
    behind = ("image_embeds", "encoder_hidden_states_2", "encoder_hidden_states")
    return *volume(module, given)[:3], 0, sum(given[name].shape[1] for name in behind)


def but_for_masks(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function of tensors that leaves masks as they are."""

    def other(x: Tensor, *args: Any) -> Tensor:
        return x if x.dtype == torch.bool else call(x, *args)

    return other


# its mask of keys [B, 1, 1, S], repeated for every query, and that with its own transpose: neither
# takes place. What padding attends to is another then, but nobody reads it
KEYS_ALONE = tuple((call, but_for_masks(call)) for call in (Tensor.repeat, Tensor.transpose))

ADAPTERS = (
    Adapter(
        classes=("HunyuanVideo15Transformer3DModel",),
        attention=r"transformer_blocks\.\d+\.attn",
        sizes=latent_sizes,
        mask="keys",
        instead=KEYS_ALONE,
        text="suffix",
        needs="0.36.0",
    ),
)

PIPELINES = {
    "SparseHunyuanVideo15Pipeline": "HunyuanVideo15Pipeline",
    "SparseHunyuanVideo15ImageToVideoPipeline": "HunyuanVideo15ImageToVideoPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
