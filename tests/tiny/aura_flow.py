"""Tiny AuraFlow."""

import torch

from tests.tiny.case import PICTURE, Case, latents, words

CONFIG = {
    "sample_size": 16, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1,
    "num_single_dit_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 16, "caption_projection_dim": 32, "out_channels": 4,
    "pos_embed_max_size": 64,
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": latents(texts),
        "encoder_hidden_states": words(texts),
        "timestep": torch.full((len(texts),), 0.5),
    }


CASES = [
    # eight register tokens
    Case(
        "AuraFlowTransformer2DModel", CONFIG, inputs, layers=2, grid=PICTURE,
        extra=lambda text: 8 + text,
    ),
]  # fmt: skip
