"""Tiny FLUX.3, without and with a reference."""

import torch

from tests.tiny.case import PICTURE, Case, positions, tokens, words

CONFIG = {
    "in_channels": 4, "cond_in_channels": 4, "num_layers": 1, "num_single_layers": 2,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16,
    "timestep_channels": 16, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": tokens(texts),
        "encoder_hidden_states": words(texts),
        "timestep": torch.full((len(texts),), 0.5),
        "img_ids": positions(),
        "txt_ids": torch.zeros(max(texts), 3),
    }


def referring(texts):
    ids = positions(10, (4, 3))
    reference = {"image_cond_hidden_states": tokens(texts, len(ids)), "image_cond_ids": ids}
    return {**inputs(texts), **reference}


FLUX = "Flux3Transformer2DModel"
CASES = [
    Case(FLUX, CONFIG, inputs, layers=3, grid=PICTURE, extra=lambda text: (0, text)),
    Case(
        FLUX, CONFIG, referring, layers=3, grid=PICTURE, extra=lambda text: (0, text + 12),
        name=f"{FLUX}-reference",
    ),
]  # fmt: skip
