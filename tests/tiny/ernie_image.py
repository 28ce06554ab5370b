"""Tiny ERNIE-Image, with padded text."""

import torch

from tests.tiny.case import PICTURE, Case, latents, words

CONFIG = {
    "hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 32,
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "text_in_dim": 16,
    "rope_axes_dim": (4, 6, 6),
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": latents(texts),
        "timestep": torch.full((len(texts),), 500.0),
        "text_bth": words(texts),
        "text_lens": torch.tensor(texts),
    }


CASES = [
    Case(
        "ErnieImageTransformer2DModel", CONFIG, inputs, layers=2, grid=PICTURE, texts=(6, 3),
        extra=lambda text: text,
    ),
]  # fmt: skip
