"""Tiny SANA-WM: one recurrent layer and one of softmax, with a camera."""

import torch

from tests.tiny.case import GRID, Case
from tests.tiny.hunyuan_video import mask


def inputs(texts):
    frames = GRID[0]
    camera = torch.cat([torch.eye(4).flatten(), torch.tensor([5.0, 5.0, 3.5, 2.5])])
    camera = camera.repeat(len(texts), frames, 1)
    # it moves to the right
    camera[..., 3] = torch.arange(frames)
    return {
        "hidden_states": torch.randn(len(texts), 4, *GRID),
        "timestep": torch.full((len(texts), 1, frames), 500),
        "encoder_hidden_states": torch.randn(len(texts), 1, max(texts), 8),
        "encoder_attention_mask": mask(texts).long(),
        "camera_conditions": camera,
        "chunk_plucker": torch.randn(len(texts), 6, *GRID),
    }


CASES = [
    Case(
        "SanaWMTransformer3DModel",
        {
            "in_channels": 4, "num_layers": 2, "hidden_size": 32, "num_attention_heads": 2,
            "softmax_every_n": 2, "linear_head_dim": 16, "chunk_plucker_channels": 6,
            "caption_channels": 8, "mlp_ratio": 2.0,
        },
        inputs,
        layers=2,
        texts=(6, 3),
        compiles=False,
    )
]  # fmt: skip
