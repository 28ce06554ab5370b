"""Tiny Ideogram 4: padding in front of text, and the picture alone, without text."""

import torch

from tests.tiny.case import PICTURE, Case, mask, positions, tokens

CONFIG = {
    "in_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "intermediate_size": 32, "adaln_dim": 16, "llm_features_dim": 16, "mrope_section": (4, 2, 2),
}  # fmt: skip
# the positions of pictures begin where no text reaches
OFFSET, TEXT, IMAGE = 65536, 3, 2
COUNT = PICTURE[1] * PICTURE[2]


def inputs(texts):
    real = mask(texts).flip(1)
    places = (real.cumsum(1) - 1).clamp_min(0)[..., None].expand(-1, -1, 3)
    image = (positions() + OFFSET).long().expand(len(texts), -1, -1)
    ones = torch.ones(len(texts), COUNT, dtype=torch.long)
    total = max(texts) + COUNT
    return {
        "hidden_states": tokens(texts, total),
        "timestep": torch.full((len(texts),), 0.5),
        "encoder_hidden_states": tokens(texts, total, 16),
        "position_ids": torch.cat([places, image], 1),
        "segment_ids": torch.cat([torch.where(real, 1, -1), ones], 1),
        "indicator": torch.cat([torch.where(real, TEXT, 0), IMAGE * ones], 1),
    }


def alone(texts):
    given = inputs(texts)
    return {k: v[:, max(texts) :] if v.ndim > 1 else v for k, v in given.items()}


IDEOGRAM = "Ideogram4Transformer2DModel"
ROW = {"layers": 2, "grid": PICTURE, "texts": (6, 3), "out": lambda out: [out[0][:, -COUNT:]]}
CASES = [
    Case(IDEOGRAM, CONFIG, inputs, extra=lambda text: text, **ROW),
    Case(IDEOGRAM, CONFIG, alone, name=f"{IDEOGRAM}-unconditional", **ROW),
]
