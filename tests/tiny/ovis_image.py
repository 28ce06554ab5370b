"""Tiny Ovis-Image and LongCat-Image, which has the picture to edit behind the other."""

import torch

from tests.tiny.case import PICTURE, Case, positions, tokens, words

CONFIG = {
    "in_channels": 4, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip


def inputs(texts, *others):
    ids = torch.cat([positions(1), *others])
    return {
        "hidden_states": tokens(texts, len(ids)),
        "encoder_hidden_states": words(texts),
        "timestep": torch.full((len(texts),), 0.5),
        "img_ids": ids,
        "txt_ids": torch.zeros(max(texts), 3),
    }


LONGCAT = "LongCatImageTransformer2DModel"
ROW = {"layers": 3, "extra": lambda text: text}
CASES = [
    Case(
        "OvisImageTransformer2DModel", {**CONFIG, "out_channels": 4}, inputs, grid=PICTURE, **ROW
    ),
    Case(LONGCAT, {**CONFIG, "pooled_projection_dim": 8}, inputs, grid=PICTURE, **ROW),
    Case(
        LONGCAT, {**CONFIG, "pooled_projection_dim": 8},
        lambda texts: inputs(texts, positions(2)), grid=(2, *PICTURE[1:]),
        name=f"{LONGCAT}-edit", **ROW,
    ),
]  # fmt: skip
