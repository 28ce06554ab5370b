"""Tiny Kandinsky 5 and 6, without and with a condition and sound."""

import torch

from tests.tiny.case import GRID, Case
from tests.tiny.hunyuan_video import mask

MODEL, MODEL_6 = "Kandinsky5Transformer3DModel", "Kandinsky6Transformer3DModel"
CONFIG = {
    "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 8, "time_dim": 16,
    "model_dim": 32, "ff_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2,
    "axes_dims": (4, 4, 8),
}  # fmt: skip
CONFIG_6 = {**CONFIG, "visual_cond": False, "in_audio_dim": 4, "out_audio_dim": 4}


def inputs(texts, channels=4):
    frames, height, width = GRID
    return {
        "hidden_states": torch.randn(len(texts), frames, 2 * height, 2 * width, channels),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
        "pooled_projections": torch.randn(len(texts), 8),
        "timestep": torch.full((len(texts),), 500.0),
        "visual_rope_pos": tuple(torch.arange(size) for size in GRID),
    }


def inputs_5(texts, channels=4):
    return {**inputs(texts, channels), "text_rope_pos": torch.arange(max(texts))}


def sound(texts):
    """Sound beside the video, and padded text, of which only cross-attention knows."""
    given = inputs(texts, channels=9)
    keys = mask(texts)[:, None, None]
    return {
        **given,
        "audio_hidden_states": torch.randn(len(texts), 5, 4),
        "encoder_attention_mask": keys,
    }


CASES = [
    Case(MODEL, CONFIG, inputs_5, layers=2, out=lambda out: [out]),
    Case(
        MODEL, {**CONFIG, "visual_cond": True}, lambda texts: inputs_5(texts, 9), layers=2,
        out=lambda out: [out], name=f"{MODEL}-condition",
    ),
    Case(MODEL_6, CONFIG_6, inputs, layers=2),
    Case(
        MODEL_6, {**CONFIG_6, "visual_cond": True}, sound, layers=2, texts=(6, 3), out=list,
        name=f"{MODEL_6}-sound",
    ),
]  # fmt: skip
