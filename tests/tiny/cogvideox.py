"""Tiny CogVideoX, without and with joined frames, and ConsisID, without and with a face."""

import math

import torch

from tests.tiny.case import GRID, Case

MODEL, FACE = "CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"
CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
    "time_embed_dim": 2, "text_embed_dim": 8, "num_layers": 2, "sample_width": 14,
    "sample_height": 10, "sample_frames": 9, "patch_size": 2, "temporal_compression_ratio": 4,
    "max_text_seq_length": 6,
}  # fmt: skip
JOINED = {"patch_size_t": 2, "patch_bias": False, "use_rotary_positional_embeddings": True}
WITH_FACE = {
    **CONFIG, "num_attention_heads": 3, "is_train_face": True, "cross_attn_dim_head": 8,
    "cross_attn_num_heads": 2, "LFE_id_dim": 8, "LFE_vit_dim": 8, "LFE_depth": 2,
    "LFE_dim_head": 8, "LFE_num_heads": 2, "LFE_num_id_token": 1, "LFE_num_querie": 3,
    "LFE_output_dim": 32, "LFE_ff_mult": 1, "LFE_num_scale": 2,
}  # fmt: skip


def inputs(texts, frames=GRID[0]):
    _, height, width = GRID
    return {
        "hidden_states": torch.randn(len(texts), frames, 4, 2 * height, 2 * width),
        "timestep": torch.full((len(texts),), 500),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 8),
    }


def joined(texts):
    angles = torch.randn(math.prod(GRID), 16)
    given = inputs(texts, frames=2 * GRID[0])
    return {**given, "image_rotary_emb": (angles.cos(), angles.sin())}


def with_face(texts):
    """A face, as a vector and as pictures at two depths of its encoder."""
    parts = tuple(torch.randn(len(texts), 3, 8) for _ in range(2))
    return {**inputs(texts), "id_cond": torch.randn(len(texts), 8), "id_vit_hidden": parts}


TEXT = {"layers": 2, "extra": lambda text: text}
CASES = [
    Case(MODEL, CONFIG, inputs, **TEXT),
    Case(MODEL, {**CONFIG, **JOINED}, joined, name=f"{MODEL}-joined-frames", **TEXT),
    Case(FACE, CONFIG, inputs, **TEXT),
    Case(FACE, WITH_FACE, with_face, name=f"{FACE}-face", **TEXT),
]
