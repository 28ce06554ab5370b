"""Tiny HunyuanImage: two padded texts; and its refiner, with frames."""

import torch

from tests.tiny.case import GRID, PICTURE, Case, latents, mask, words

CONFIG = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
    "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": (2, 2),
    "text_embed_dim": 16, "rope_axes_dim": (8, 8),
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": latents(texts),
        "timestep": torch.full((len(texts),), 500.0),
        "encoder_hidden_states": words(texts),
        "encoder_attention_mask": mask(texts),
    }


def with_glyphs(texts):
    second = {"encoder_hidden_states_2": words(texts, 8), "encoder_attention_mask_2": mask(texts)}
    return {**inputs(texts), **second}


def refiner(texts):
    return {
        **inputs(texts),
        "hidden_states": torch.randn(len(texts), 4, *GRID),
        "guidance": torch.full((len(texts),), 3500.0),
    }


REFINER = {
    **CONFIG, "patch_size": (1, 1, 1), "rope_axes_dim": (4, 4, 8), "guidance_embeds": True
}  # fmt: skip
HUNYUAN = "HunyuanImageTransformer2DModel"
ROW = {"texts": (6, 3), "layers": 2}
CASES = [
    Case(HUNYUAN, CONFIG, inputs, grid=PICTURE, extra=lambda text: text, **ROW),
    Case(
        HUNYUAN, {**CONFIG, "text_embed_2_dim": 8}, with_glyphs, grid=PICTURE,
        extra=lambda text: 2 * text, name=f"{HUNYUAN}-glyphs", compiles=False, **ROW,
    ),
    Case(HUNYUAN, REFINER, refiner, extra=lambda text: text, name=f"{HUNYUAN}-refiner", **ROW),
]  # fmt: skip
