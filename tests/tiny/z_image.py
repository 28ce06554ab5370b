"""Tiny Z-Image: lists, padded to 32 tokens; omni mode with a picture to start from."""

import torch

from tests.tiny.case import PICTURE, Case

CONFIG = {
    "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2,
    "n_kv_heads": 2, "cap_feat_dim": 16, "axes_dims": [4, 6, 6], "axes_lens": [256, 32, 32],
}  # fmt: skip


def picture(height=PICTURE[1], width=PICTURE[2]):
    return torch.randn(4, 1, 2 * height, 2 * width)


def inputs(texts):
    return {
        "x": [picture() for _ in texts],
        "t": torch.full((len(texts),), 0.5),
        "cap_feats": [torch.randn(text, 16) for text in texts],
    }


def omni(texts):
    """Text, a picture; its features behind."""
    return {
        "x": [[picture(4, 4), picture()] for _ in texts],
        "t": torch.full((len(texts),), 0.5),
        "cap_feats": [[torch.randn(4, 16), torch.randn(text, 16)] for text in texts],
        "siglip_feats": [[torch.randn(3, 4, 8), None] for _ in texts],
        "image_noise_mask": [[0, 1] for _ in texts],
    }


Z = "ZImageTransformer2DModel"
# 35 tokens become 64
PAD = 29
CASES = [
    Case(
        Z, CONFIG, inputs, layers=2, grid=PICTURE, texts=(40, 3),
        extra=lambda text: PAD + -(-text // 32) * 32, out=lambda out: [torch.stack(out[0])],
        compiles=False,
    ),
    Case(
        Z, {**CONFIG, "siglip_feat_dim": 8}, omni, layers=2, grid=PICTURE, texts=(40, 3),
        extra=lambda text: 32 + -(-text // 32) * 32 + 32 + PAD + 64,
        out=lambda out: [torch.stack(out[0])], compiles=False, name=f"{Z}-omni",
    ),
]  # fmt: skip
