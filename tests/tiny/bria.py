"""Tiny Bria 3.2, FIBO with padded text, and FIBO 2 with references and with different texts."""

import torch
from torch.nn import functional as F

from tests.tiny.case import PICTURE, Case, latents, mask, positions, tokens, words

CONFIG = {
    "in_channels": 4, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": [4, 4, 8],
}  # fmt: skip
TWO = {
    "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2,
    "cap_feat_dim": 16, "injection_layer_ids": (1,), "perceiver_num_layers": 1,
    "min_num_gist_tokens": 4, "max_num_gist_tokens": 8, "gist_step": 4, "gist_min_text_len": 3,
    "gist_max_text_len": 6, "axes_dims": (4, 6, 6), "axes_lens": (64, 32, 32),
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": tokens(texts),
        "encoder_hidden_states": words(texts),
        "timestep": torch.full((len(texts),), 500.0),
        "img_ids": positions(),
        "txt_ids": torch.zeros(max(texts), 3),
    }


def fibo(texts):
    return {
        **inputs(texts),
        "text_encoder_layers": tuple(words(texts, 8) for _ in range(3)),
        "joint_attention_kwargs": {
            "attention_mask": F.pad(mask(texts), (0, 35), value=True)[:, None, None]
        },
    }


def gist(texts):
    return {
        "hidden_states": latents(texts),
        "timestep": torch.full((len(texts),), 0.5),
        "encoder_hidden_states": torch.randn(len(texts), 2, max(texts), 16),
        "encoder_attention_mask": mask(texts),
    }


def referring(texts):
    references = tuple(torch.randn(len(texts), 4, 6, 8) for _ in range(2))
    return {**gist(texts), "context_latents": references}


FIBO = "BriaFibo2Transformer2DModel"
ROW = {"grid": PICTURE, "compiles": False}
CASES = [
    Case(
        "BriaTransformer2DModel", CONFIG, inputs, layers=3, grid=PICTURE, extra=lambda text: text
    ),
    Case(
        "BriaFiboTransformer2DModel", {**CONFIG, "text_encoder_dim": 8}, fibo, layers=3,
        grid=PICTURE, texts=(6, 3), extra=lambda text: text,
    ),
    Case(FIBO, TWO, gist, layers=2, extra=lambda text: 8, **ROW),
    Case(
        FIBO, TWO, gist, layers=2, texts=(6, 3), extra=lambda text: {6: 8, 3: 4}[text],
        name=f"{FIBO}-two-lengths", **ROW,
    ),
    Case(
        FIBO, TWO, referring, layers=2, extra=lambda text: 8 + 24, name=f"{FIBO}-references", **ROW
    ),
]  # fmt: skip
