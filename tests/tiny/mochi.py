"""Tiny Mochi; it asks which text tokens are valid, so it cannot be one graph."""

import torch

from tests.tiny.case import GRID, Case
from tests.tiny.hunyuan_video import mask


def inputs(texts):
    frames, height, width = GRID
    return {
        "hidden_states": torch.randn(len(texts), 4, frames, 2 * height, 2 * width),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
        "timestep": torch.full((len(texts),), 500),
        "encoder_attention_mask": mask(texts),
    }


CASES = [
    Case(
        "MochiTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "in_channels": 4,
            "pooled_projection_dim": 16, "text_embed_dim": 16, "time_embed_dim": 8,
            "max_sequence_length": 6,
        },
        inputs,
        layers=2,
        texts=(6, 3),
        extra=lambda text: text,
        compiles=False,
        quiet="In CPU autocast",
    )
]  # fmt: skip
