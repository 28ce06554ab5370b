"""Qwen-Image: text, then one or several pictures; those of one size are frames of one box."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.integrations.capture import ATTENTION
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import pictures


def shaped_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the pictures from `img_shapes`, text from [B, S, C]."""
    found = pictures(given)
    return *found[:3], given["encoder_hidden_states"].shape[1], found[3]


def target_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the last picture from `img_shapes`; text and the other pictures stand before it.

    Four tokens of another picture take the place of one of text [B, S, C].
    """
    *others, (_, height, width) = given["img_shapes"][0]
    held = sum(h * w for _, h, w in others)
    return 1, height, width, given["encoder_hidden_states"].shape[1] - held // 4 + held, 0


ADAPTERS = (
    Adapter(
        classes=("QwenImageTransformer2DModel",),
        attention=r"transformer_blocks\.\d+\.attn",
        sizes=shaped_sizes,
        mask="keys",
        text="prefix",
        needs="0.35.0",
    ),
    Adapter(
        classes=("QwenImage21Transformer2DModel",),
        attention=r"transformer_blocks\.\d+\.attn",
        sizes=target_sizes,
        mask="keys",
        instead=(ATTENTION,),
        text="packed",
        needs="0.42.0",
        note="text and other pictures attend to what is before them, dense, in the first step; "
        "later ones keep their keys; with QwenImage21FlexAttnProcessor the first step is dense",
    ),
)

PIPELINES = {
    "SparseQwenImagePipeline": "QwenImagePipeline",
    "SparseQwenImageImg2ImgPipeline": "QwenImageImg2ImgPipeline",
    "SparseQwenImageInpaintPipeline": "QwenImageInpaintPipeline",
    "SparseQwenImageEditPipeline": "QwenImageEditPipeline",
    "SparseQwenImageEditInpaintPipeline": "QwenImageEditInpaintPipeline",
    "SparseQwenImageEditPlusPipeline": "QwenImageEditPlusPipeline",
    "SparseQwenImageLayeredPipeline": "QwenImageLayeredPipeline",
    "SparseQwenImageControlNetPipeline": "QwenImageControlNetPipeline",
    "SparseQwenImageControlNetInpaintPipeline": "QwenImageControlNetInpaintPipeline",
    "SparseQwenImage21Pipeline": "QwenImage21Pipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
