"""Tiny Cosmos: 1 and 2, 2.5 with an image and a time step per frame, 3 without and with sound."""

import math

import torch

from tests.tiny.case import GRID, Case

MODEL = "CosmosTransformer3DModel"
CONFIG = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
    "num_layers": 2, "mlp_ratio": 2, "text_embed_dim": 16, "adaln_lora_dim": 4,
    "max_size": (4, 16, 16), "extra_pos_embed_type": "learnable", "concat_padding_mask": False,
}  # fmt: skip
IMAGE = {"img_context_dim_in": 8, "img_context_num_tokens": 5, "img_context_dim_out": 32}


def inputs(texts):
    frames, height, width = GRID
    return {
        "hidden_states": torch.randn(len(texts), 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((len(texts),), 0.5),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
        "fps": 24,
    }


def with_image(texts):
    given = inputs(texts)
    both = given["encoder_hidden_states"], torch.randn(len(texts), 5, 8)
    return {**given, "encoder_hidden_states": both}


def per_frame(texts):
    steps = torch.linspace(0.1, 0.5, GRID[0]).view(1, 1, -1, 1, 1)
    return {**inputs(texts), "timestep": steps.repeat(len(texts), 1, 1, 1, 1)}


MODEL_3 = "Cosmos3OmniTransformer"
CONFIG_3 = {
    "head_dim": 16, "hidden_size": 32, "intermediate_size": 32, "latent_channel": 4,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "patch_latent_dim": 16, "vocab_size": 11, "rope_scaling": {"mrope_section": [4, 2, 2]},
}  # fmt: skip
SOUND = 5


def packed(texts):
    """One sample: text, and a video whose first frame is given."""
    (text,), (frames, height, width), total = texts, GRID, text_and_box(texts)
    first = text + height * width
    return {
        "input_ids": torch.randint(0, 11, (text,)),
        "text_indexes": torch.arange(text),
        "position_ids": torch.randint(0, 9, (3, total)),
        "und_len": text,
        "sequence_length": total,
        "vision_tokens": [torch.randn(1, 4, frames, 2 * height, 2 * width)],
        "vision_token_shapes": [GRID],
        "vision_sequence_indexes": torch.arange(text, total),
        "vision_mse_loss_indexes": torch.arange(first, total),
        "vision_timesteps": torch.full((total - first,), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(1, frames)],
    }


def text_and_box(texts):
    return sum(texts) + math.prod(GRID)


def with_sound(texts):
    start = text_and_box(texts)
    return {
        **packed(texts),
        "sequence_length": start + SOUND,
        "position_ids": torch.randint(0, 9, (3, start + SOUND)),
        "sound_tokens": [torch.randn(4, SOUND)],
        "sound_token_shapes": [(SOUND, 1, 1)],
        "sound_sequence_indexes": torch.arange(start, start + SOUND),
        "sound_mse_loss_indexes": torch.arange(start, start + SOUND),
        "sound_timesteps": torch.full((SOUND,), 500.0),
        "sound_noisy_frame_indexes": [torch.arange(SOUND)],
    }


ONE = {"layers": 2, "texts": (6,)}
CASES = [
    Case(MODEL, CONFIG, inputs, layers=2),
    Case(MODEL, CONFIG, per_frame, layers=2, name=f"{MODEL}-timestep-per-frame"),
    Case(
        MODEL, {**CONFIG, **IMAGE, "extra_pos_embed_type": None}, with_image, layers=2,
        name=f"{MODEL}-image",
    ),
    Case(MODEL_3, CONFIG_3, packed, extra=lambda text: text, out=lambda out: out[0], **ONE),
    Case(
        MODEL_3, {**CONFIG_3, "sound_gen": True, "sound_dim": 4}, with_sound,
        extra=lambda text: text + SOUND, out=lambda out: [*out[0], *(x[None] for x in out[1])],
        name=f"{MODEL_3}-sound", **ONE,
    ),
]  # fmt: skip
