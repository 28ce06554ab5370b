"""JoyImage-Edit: several pictures as frames, or packed one after another, then text."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes, joined
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import patch


def item_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, T, H, W] or [B, N, C, T, H, W], and text behind it."""
    x = given["hidden_states"]
    t, h, w = patch(module)
    frames, height, width = x.shape[-3:]
    frames *= x.shape[1] if x.ndim == 6 else 1
    return frames // t, height // h, width // w, 0, given["encoder_hidden_states"].shape[1]


def packed_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the pictures from `shape_list`, (frames, height, width) of each of every sample.

    What is behind the first ones of one size, padding included, are extra tokens.
    """
    found = {joined(shapes)[:3] for shapes in given["shape_list"]}
    frames, height, width = found.pop()
    rest = given["hidden_states"].shape[1] - frames * height * width
    text = given["encoder_hidden_states"].shape[1]
    return (0, 0, 0, 0, 0) if found else (frames, height, width, 0, rest + text)


ADAPTERS = (
    Adapter(
        classes=("JoyImageEditTransformer3DModel",),
        attention=r"double_blocks\.\d+\.attn",
        sizes=item_sizes,
        text="suffix",
        needs="0.38.0",
    ),
    Adapter(
        classes=("JoyImageEditPlusTransformer3DModel",),
        attention=r"double_blocks\.\d+\.attn",
        sizes=packed_sizes,
        mask="keys",
        text="suffix",
        needs="0.42.0",
        note="samples whose first pictures differ in size stay dense",
    ),
)

PIPELINES = {
    "SparseJoyImageEditPipeline": "JoyImageEditPipeline",
    "SparseJoyImageEditPlusPipeline": "JoyImageEditPlusPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
