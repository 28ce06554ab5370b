"""Tiny CogView 3 Plus and 4, and GLM-Image: alone, taking keys of a picture, with keys of one."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

from tests.tiny.case import PICTURE, Case, latents, words

CONFIG = {
    "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "out_channels": 4, "text_embed_dim": 16, "time_embed_dim": 8,
    "condition_dim": 4,
}  # fmt: skip
OLD = {**CONFIG, "pos_embed_max_size": 16, "sample_size": 16}
NEW = {**CONFIG, "pos_embed_max_size": 16, "sample_size": 16, "rope_axes_dim": (8, 8)}
GLM = {**CONFIG, "prior_vq_quantizer_codebook_size": 8}


def inputs(texts):
    size = torch.tensor([[20.0, 28.0]] * len(texts))
    return {
        "hidden_states": latents(texts),
        "encoder_hidden_states": words(texts),
        "timestep": torch.full((len(texts),), 500),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(len(texts), 2),
    }


def glm(texts):
    given = inputs(texts)
    del given["original_size"]
    count = PICTURE[1] * PICTURE[2]
    return {
        **given,
        "prior_token_id": torch.randint(8, (len(texts), count)),
        "prior_token_drop": torch.zeros(len(texts), count, dtype=torch.bool),
    }


class Kept(list):
    """A filled cache, as diffusers has it: of each sample keys and values [L, 2, 1, S, H, D]."""

    def __getitem__(self, at) -> Any:
        if isinstance(at, slice):
            return Kept(super().__getitem__(at))
        cache = GlmImageKVCache(1)
        for pair in self:
            cache[0].store(*pair[at])
            cache.next_sample()
        cache.set_mode("read")
        return cache[0]


def kept(texts):
    return {**glm(texts), "kv_caches": Kept(torch.randn(2, 2, 1, 9, 2, 16) for _ in texts)}


IMAGE = "GlmImageTransformer2DModel"
ROW = {"layers": 2, "grid": PICTURE}
CASES = [
    Case("CogView3PlusTransformer2DModel", OLD, inputs, extra=lambda text: text, **ROW),
    Case("CogView4Transformer2DModel", NEW, inputs, extra=lambda text: text, **ROW),
    Case(IMAGE, GLM, glm, extra=lambda text: text, **ROW),
    Case(
        IMAGE, GLM, kept, extra=lambda text: 9 + text, compiles=False,
        name=f"{IMAGE}-keeping-keys", **ROW,
    ),
]  # fmt: skip
