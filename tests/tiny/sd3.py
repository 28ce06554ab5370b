"""Tiny Stable Diffusion 3, and 3.5 with attention to the picture alone."""

import torch

from tests.tiny.case import PICTURE, Case, latents, words

CONFIG = {
    "sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16,
    "caption_projection_dim": 32, "pooled_projection_dim": 8, "pos_embed_max_size": 16,
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": latents(texts),
        "encoder_hidden_states": words(texts),
        "pooled_projections": torch.randn(len(texts), 8),
        "timestep": torch.full((len(texts),), 500),
    }


SD3 = "SD3Transformer2DModel"
CASES = [
    Case(SD3, CONFIG, inputs, layers=2, grid=PICTURE, extra=lambda text: text),
    Case(
        SD3, {**CONFIG, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}, inputs, layers=3,
        grid=PICTURE, extra=lambda text: (0, text), name=f"{SD3}-dual",
    ),
]  # fmt: skip
