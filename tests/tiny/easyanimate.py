"""Tiny EasyAnimate: a layer with a stream of its own for text and one without, one text or two."""

import torch

from tests.tiny.case import GRID, Case

MODEL = "EasyAnimateTransformer3DModel"
CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
    "time_embed_dim": 8, "text_embed_dim": 16, "num_layers": 2, "mmdit_layers": 1, "patch_size": 2,
    "sample_width": 14, "sample_height": 10,
}  # fmt: skip


def inputs(texts):
    frames, height, width = GRID
    return {
        "hidden_states": torch.randn(len(texts), 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((len(texts),), 500),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
    }


def two_texts(texts):
    return {**inputs(texts), "encoder_hidden_states_t5": torch.randn(len(texts), 4, 8)}


CASES = [
    Case(MODEL, CONFIG, inputs, layers=2, extra=lambda text: text),
    Case(
        MODEL, {**CONFIG, "text_embed_dim_t5": 8}, two_texts, layers=2,
        extra=lambda text: text + 4, name=f"{MODEL}-two-texts",
    ),
]  # fmt: skip
