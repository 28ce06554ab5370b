"""Tiny DiT, PixArt and Hunyuan-DiT."""

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed

from tests.tiny.case import PICTURE, Case, latents, mask, words

CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "num_layers": 2,
    "sample_size": 16, "patch_size": 2,
}  # fmt: skip
PIXART = {
    **CONFIG, "out_channels": 4, "cross_attention_dim": 32, "caption_channels": 16,
    "use_additional_conditions": False,
}  # fmt: skip
HUNYUAN = {
    **CONFIG, "hidden_size": 32, "cross_attention_dim": 16, "cross_attention_dim_t5": 16,
    "pooled_projection_dim": 8, "text_len": 6, "text_len_t5": 6,
}  # fmt: skip


def classes(texts):
    return {
        "hidden_states": latents(texts)[..., :10],
        "timestep": torch.full((len(texts),), 500),
        "class_labels": torch.arange(len(texts)),
    }


def pixart(texts):
    return {
        "hidden_states": latents(texts),
        "timestep": torch.full((len(texts),), 500),
        "encoder_hidden_states": words(texts),
        "encoder_attention_mask": mask(texts),
        "added_cond_kwargs": {},
    }


def hunyuan(texts):
    return {
        "hidden_states": latents(texts),
        "timestep": torch.full((len(texts),), 500.0),
        "encoder_hidden_states": words(texts),
        "text_embedding_mask": mask(texts),
        "encoder_hidden_states_t5": words(texts),
        "text_embedding_mask_t5": mask(texts),
        "image_meta_size": torch.full((len(texts), 6), 64.0),
        "style": torch.zeros(len(texts), dtype=torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed(16, ((0, 0), (5, 7)), PICTURE[1:]),
    }


ROW = {"layers": 2, "grid": PICTURE}
CASES = [
    # squares only
    Case("DiTTransformer2DModel", CONFIG, classes, layers=2, grid=(1, 5, 5)),
    Case("PixArtTransformer2DModel", PIXART, pixart, texts=(6, 3), **ROW),
    Case("HunyuanDiT2DModel", HUNYUAN, hunyuan, texts=(6, 3), **ROW),
]
