"""Tiny FLUX.1: a picture, and with a reference behind it, of its size and of another (Kontext)."""

import torch

from tests.tiny.case import PICTURE, Case, positions, tokens, words

CONFIG = {
    "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "in_channels": 4, "joint_attention_dim": 16, "pooled_projection_dim": 8,
    "axes_dims_rope": (4, 4, 8),
}  # fmt: skip


def inputs(texts, *references):
    ids = [positions(), *(positions(1, size) for size in references)]
    return {
        "hidden_states": tokens(texts, sum(map(len, ids))),
        "encoder_hidden_states": words(texts),
        "pooled_projections": torch.randn(len(texts), 8),
        "timestep": torch.full((len(texts),), 0.5),
        "img_ids": torch.cat(ids),
        "txt_ids": torch.zeros(max(texts), 3),
    }


FLUX = "FluxTransformer2DModel"
CASES = [
    Case(FLUX, CONFIG, inputs, layers=3, grid=PICTURE, extra=lambda text: text),
    Case(
        FLUX, CONFIG, lambda texts: inputs(texts, PICTURE[1:]), layers=3, grid=(2, *PICTURE[1:]),
        extra=lambda text: text, name=f"{FLUX}-reference",
    ),
    Case(
        FLUX, CONFIG, lambda texts: inputs(texts, (4, 3)), layers=3, grid=PICTURE,
        extra=lambda text: text + 12, name=f"{FLUX}-reference-of-another-size",
    ),
]  # fmt: skip
