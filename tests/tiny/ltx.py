"""Tiny LTX-Video and LTX-2: the grid in numbers, as coordinates, with conditions."""

import math

import torch

from tests.tiny.case import GRID, Case
from tests.tiny.hunyuan_video import mask

MODEL, MODEL_2 = "LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"
CONFIG = {
    "in_channels": 8, "out_channels": 8, "num_attention_heads": 2, "attention_head_dim": 16,
    "cross_attention_dim": 32, "num_layers": 2, "caption_channels": 16,
}  # fmt: skip
CONFIG_2 = {
    **CONFIG, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16,
}  # fmt: skip
BOX = math.prod(GRID)
NUMBERS = dict(zip(("num_frames", "height", "width"), GRID, strict=True))


def places(frames, height, width, first=0, size=8):
    """Return coordinates [3, S] of pictures of this size, in pixels."""
    axes = (torch.arange(first, first + frames), torch.arange(height), torch.arange(width))
    return (size * torch.cartesian_prod(*axes)).T.float()


def tokens(texts, number=BOX):
    return {
        "hidden_states": torch.randn(len(texts), number, 8),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
        "timestep": torch.full((len(texts), number), 500),
        "encoder_attention_mask": mask(texts).long(),
    }


def numbers(texts):
    return {**tokens(texts), **NUMBERS}


def coordinates(texts, *conditions):
    """Conditions of sizes (frames, height, width) before the video."""
    parts = [places(*size, first=8) for size in conditions]
    found = torch.cat([*parts, places(*GRID)], 1).expand(len(texts), -1, -1).clone()
    return {**tokens(texts, found.shape[2]), "video_coords": found}


def sound(texts, given):
    audio = torch.randn(len(texts), 5, 4)
    text = torch.randn(len(texts), max(texts), 16)
    when = {"audio_timestep": torch.full((len(texts),), 500), "audio_num_frames": 5}
    return {**given, "audio_hidden_states": audio, "audio_encoder_hidden_states": text, **when}


def behind(texts, *conditions):
    """Conditions behind the video, of sizes (frames, height, width, pixels of a token)."""
    parts = [places(*size, size=pixels) for *size, pixels in conditions]
    found = torch.cat([places(*GRID), *parts], 1)
    found = torch.stack([found, found + 8], -1).expand(len(texts), -1, -1, -1).clone()
    return sound(texts, {**tokens(texts, found.shape[2]), **NUMBERS, "video_coords": found})


FRAMES, HEIGHT, WIDTH = GRID
BOTH = {"layers": 2, "texts": (6, 3)}
CASES = [
    Case(MODEL, CONFIG, numbers, **BOTH),
    Case(MODEL, CONFIG, coordinates, name=f"{MODEL}-coordinates", **BOTH),
    Case(
        MODEL, CONFIG, lambda texts: coordinates(texts, (2, HEIGHT, WIDTH)),
        name=f"{MODEL}-condition", grid=(FRAMES + 2, HEIGHT, WIDTH), **BOTH,
    ),
    Case(
        MODEL, CONFIG, lambda texts: coordinates(texts, (1, 3, 2)),
        name=f"{MODEL}-small-condition", extra=lambda text: 6, **BOTH,
    ),
    Case(MODEL_2, CONFIG_2, lambda texts: sound(texts, numbers(texts)), **BOTH),
    Case(
        MODEL_2, {**CONFIG_2, "perturbed_attn": True, "gated_attn": True}, behind,
        name=f"{MODEL_2}-coordinates", **BOTH,
    ),
    Case(
        MODEL_2, CONFIG_2, lambda texts: behind(texts, (1, 3, 4, 16)),
        name=f"{MODEL_2}-reference", extra=lambda text: 12, **BOTH,
    ),
]  # fmt: skip
