"""Tiny HunyuanVideo 1.5: without and with an image; its second text is half as long."""

import torch

from tests.tiny.case import GRID, Case
from tests.tiny.hunyuan_video import mask

MODEL, IMAGE = "HunyuanVideo15Transformer3DModel", 4
CONFIG = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
    "num_layers": 2, "num_refiner_layers": 1, "text_embed_dim": 16, "text_embed_2_dim": 8,
    "image_embed_dim": 8, "rope_axes_dim": (4, 4, 8),
}  # fmt: skip


def with_image(texts):
    half = tuple(text // 2 for text in texts)
    return {
        "hidden_states": torch.randn(len(texts), 4, *GRID),
        "timestep": torch.full((len(texts),), 500.0),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
        "encoder_attention_mask": mask(texts),
        "encoder_hidden_states_2": torch.randn(len(texts), max(half), 8),
        "encoder_attention_mask_2": mask(half),
        "image_embeds": torch.randn(len(texts), IMAGE, 8),
    }


def without(texts):
    given = with_image(texts)
    return {**given, "image_embeds": torch.zeros_like(given["image_embeds"])}


# the forward asks whether there is an image, and picks tokens by their mask
ROW = {"layers": 2, "texts": (6, 3), "compiles": False}
CASES = [
    Case(MODEL, CONFIG, without, extra=lambda text: text + text // 2, **ROW),
    Case(
        MODEL, CONFIG, with_image, extra=lambda text: text + text // 2 + IMAGE, **ROW,
        name=f"{MODEL}-image",
    ),
]  # fmt: skip
