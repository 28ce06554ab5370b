"""Tiny Lumina Image 2.0, with text of different lengths, and Lumina-Next."""

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

from tests.tiny.case import PICTURE, Case, latents, mask, words

CONFIG = {
    "sample_size": 16, "patch_size": 2, "in_channels": 4, "hidden_size": 32, "num_layers": 2,
    "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16,
    "axes_dim_rope": (4, 4, 8), "axes_lens": (32, 16, 16), "cap_feat_dim": 16,
}  # fmt: skip
NEXT = {
    "sample_size": 16, "patch_size": 2, "in_channels": 4, "hidden_size": 32, "num_layers": 2,
    "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "cross_attention_dim": 16,
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": latents(texts),
        "timestep": torch.full((len(texts),), 0.5),
        "encoder_hidden_states": words(texts),
        "encoder_attention_mask": mask(texts),
    }


def before(texts):
    return {
        "hidden_states": latents(texts),
        "timestep": torch.full((len(texts),), 0.5),
        "encoder_hidden_states": words(texts),
        "encoder_mask": mask(texts),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(16, 16, 16),
        "cross_attention_kwargs": {},
    }


CASES = [
    Case(
        "Lumina2Transformer2DModel", CONFIG, inputs, layers=2, grid=PICTURE, texts=(6, 3),
        extra=lambda text: text, compiles=False,
    ),
    Case("LuminaNextDiT2DModel", NEXT, before, layers=2, grid=PICTURE, texts=(6, 3)),
]  # fmt: skip
