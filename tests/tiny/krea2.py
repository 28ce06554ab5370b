"""Tiny Krea 2, with padded text."""

import torch

from tests.tiny.case import PICTURE, Case, mask, positions, tokens

CONFIG = {
    "in_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 32, "timestep_embed_dim": 16,
    "text_hidden_dim": 16, "num_text_layers": 2, "text_num_attention_heads": 2,
    "text_num_key_value_heads": 1, "text_intermediate_size": 16, "num_layerwise_text_blocks": 1,
    "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": tokens(texts),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 2, 16),
        "timestep": torch.full((len(texts),), 0.5),
        "position_ids": torch.cat([torch.zeros(max(texts), 3), positions()]),
        "encoder_attention_mask": mask(texts),
    }


CASES = [
    Case(
        "Krea2Transformer2DModel", CONFIG, inputs, layers=2, grid=PICTURE, texts=(6, 3),
        extra=lambda text: text,
    ),
]  # fmt: skip
