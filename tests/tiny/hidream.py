"""Tiny HiDream: a square, and a picture padded to the longest sequence."""

import torch

from tests.tiny.case import PICTURE, Case, latents, words

CONFIG = {
    "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 16, "num_attention_heads": 2, "caption_channels": [16, 16],
    "text_emb_dim": 8, "num_routed_experts": 2, "num_activated_experts": 1,
    "axes_dims_rope": (4, 4, 8), "max_resolution": (14, 14), "llama_layers": [0, 1],
    "force_inference_output": True,
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": latents(texts),
        "timesteps": torch.full((len(texts),), 500),
        "encoder_hidden_states_t5": words(texts),
        "encoder_hidden_states_llama3": (words(texts), words(texts)),
        "pooled_embeds": torch.randn(len(texts), 8),
    }


def square(texts):
    return {**inputs(texts), "hidden_states": torch.randn(len(texts), 4, 10, 10)}


HIDREAM = "HiDreamImageTransformer2DModel"
CASES = [
    # 49 tokens at most
    Case(
        HIDREAM, CONFIG, inputs, layers=2, grid=PICTURE, extra=lambda text: 14 + 3 * text,
        compiles=False,
    ),
    Case(
        HIDREAM, CONFIG, square, layers=2, grid=(1, 5, 5), extra=lambda text: 3 * text,
        compiles=False, name=f"{HIDREAM}-square",
    ),
]  # fmt: skip
