"""Tiny Motif-Video: text, an image, cross-attention that is left alone, and a last layer that
attends to two videos."""

import torch

from tests.tiny.case import GRID, Case
from tests.tiny.hunyuan_video import mask

MODEL, IMAGE = "MotifVideoTransformer3DModel", 4
CONFIG = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
    "num_layers": 1, "num_single_layers": 2, "text_embed_dim": 16, "rope_axes_dim": (4, 4, 8),
}  # fmt: skip
CROSS = {"enable_text_cross_attention_dual": True, "enable_text_cross_attention_single": True}


def inputs(texts):
    frames, height, width = GRID
    return {
        "hidden_states": torch.randn(len(texts), 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((len(texts),), 500),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
        "encoder_attention_mask": mask(texts).long(),
    }


def with_image(texts):
    return {**inputs(texts), "image_embeds": torch.randn(len(texts), IMAGE, 8)}


CASES = [
    Case(MODEL, CONFIG, inputs, layers=3, texts=(6, 3), extra=lambda text: text),
    Case(
        MODEL, {**CONFIG, **CROSS, "image_embed_dim": 8}, with_image, layers=3, texts=(6, 3),
        extra=lambda text: text + IMAGE, name=f"{MODEL}-image",
    ),
    Case(
        MODEL, {**CONFIG, "num_decoder_layers": 1}, inputs, layers=3, texts=(6, 3),
        extra=lambda text: text, more=((2 * GRID[0], *GRID[1:], 0),), name=f"{MODEL}-decoder",
    ),
]  # fmt: skip
