"""Tiny JoyImage-Edit: several pictures as frames; and packed pictures of different sizes."""

import torch

from tests.tiny.case import PICTURE, Case, mask, words

CONFIG = {
    "patch_size": [1, 2, 2], "in_channels": 4, "hidden_size": 32, "num_attention_heads": 2,
    "text_dim": 16, "num_layers": 2, "rope_dim_list": [4, 6, 6],
}  # fmt: skip


def inputs(texts, items=2):
    return {
        "hidden_states": torch.randn(len(texts), items, 4, 1, 10, 14),
        "timestep": torch.full((len(texts),), 500),
        "encoder_hidden_states": words(texts),
    }


def packed(texts):
    """The second sample has one picture less, and padding in its place."""
    shapes = [[PICTURE, (1, 3, 4), (1, 2, 2)], [PICTURE, (1, 3, 4)]][: len(texts)]
    return {
        "hidden_states": torch.randn(len(texts), 35 + 12 + 4, 4, 1, 2, 2),
        "timestep": torch.full((len(texts),), 500),
        "encoder_hidden_states": words(texts),
        "encoder_hidden_states_mask": mask(texts),
        "shape_list": shapes,
    }


CASES = [
    Case(
        "JoyImageEditTransformer3DModel", CONFIG, inputs, layers=2, grid=(2, *PICTURE[1:]),
        extra=lambda text: text,
    ),
    Case(
        "JoyImageEditPlusTransformer3DModel", CONFIG, packed, layers=2, grid=PICTURE, texts=(6, 3),
        extra=lambda text: text + {6: 16, 3: 12}[text], out=lambda out: [out[0][:, :47]],
    ),
]  # fmt: skip
