"""Tiny Chroma, with padded text."""

import torch
from torch.nn import functional as F

from tests.tiny.case import PICTURE, Case, mask, positions, tokens, words

CONFIG = {
    "in_channels": 4, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 8),
    "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1,
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": tokens(texts),
        "encoder_hidden_states": words(texts),
        "timestep": torch.full((len(texts),), 0.5),
        "img_ids": positions(),
        "txt_ids": torch.zeros(max(texts), 3),
        "attention_mask": F.pad(mask(texts), (0, len(positions())), value=True),
    }


CASES = [
    Case(
        "ChromaTransformer2DModel", CONFIG, inputs, layers=3, grid=PICTURE, texts=(6, 3),
        extra=lambda text: text, quiet="`FluxPosEmbed` is deprecated",
    ),
]  # fmt: skip
