"""Tiny Latte: its self-attention is that within frames."""

import torch

from tests.tiny.case import GRID, Case

FRAMES, HEIGHT, WIDTH = GRID


def inputs(texts):
    return {
        "hidden_states": torch.randn(len(texts), 4, FRAMES, 2 * HEIGHT, 2 * WIDTH),
        "timestep": torch.full((len(texts),), 500),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
    }


CASES = [
    Case(
        "LatteTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4,
            "out_channels": 8, "num_layers": 2, "cross_attention_dim": 32, "caption_channels": 16,
            "sample_size": 14, "patch_size": 2, "norm_type": "ada_norm_single",
            "num_embeds_ada_norm": 1000, "norm_elementwise_affine": False,
            "activation_fn": "gelu-approximate", "attention_bias": True, "video_length": FRAMES,
        },
        inputs,
        layers=2,
        grid=(1, HEIGHT, WIDTH),
    )
]  # fmt: skip
