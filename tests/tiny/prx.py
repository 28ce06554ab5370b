"""Tiny PRX, with padded text that has no queries."""

import torch

from tests.tiny.case import PICTURE, Case, latents, mask, words

CONFIG = {
    "in_channels": 4, "patch_size": 2, "context_in_dim": 16, "hidden_size": 32, "num_heads": 2,
    "depth": 2, "axes_dim": [8, 8],
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": latents(texts),
        "timestep": torch.full((len(texts),), 0.5),
        "encoder_hidden_states": words(texts),
        "attention_mask": mask(texts),
    }


CASES = [
    Case(
        "PRXTransformer2DModel", CONFIG, inputs, layers=2, grid=PICTURE, texts=(6, 3),
        extra=lambda text: text,
    ),
]  # fmt: skip
