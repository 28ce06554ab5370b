"""Tiny Wan and what grew from it."""

import torch

from tests.tiny.case import GRID, Case

CONFIG = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4,
    "out_channels": 4, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2,
    "cross_attn_norm": True, "rope_max_seq_len": 32,
}  # fmt: skip
IMAGE = {"image_dim": 8, "added_kv_proj_dim": 32}


def inputs(texts):
    frames, height, width = GRID
    return {
        "hidden_states": torch.randn(len(texts), 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((len(texts),), 500),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
    }


def with_image(texts):
    """Image tokens, whose cross-attention is a second one in the same module."""
    return {**inputs(texts), "encoder_hidden_states_image": torch.randn(len(texts), 5, 8)}


def per_token(texts):
    """A time step for every token: those of the given frame are clean."""
    given = inputs(texts)
    frames, height, width = GRID
    steps = torch.full((len(texts), frames * height * width), 500)
    steps[:, : height * width] = 0
    return {**given, "timestep": steps}


def vace(texts):
    given = inputs(texts)
    return {**given, "control_hidden_states": torch.randn(len(texts), 6, *GRID).repeat_interleave(
        2, 3).repeat_interleave(2, 4)}  # fmt: skip


def animate(texts):
    """Latents of the video and of a reference frame in front, a pose and a face video."""
    frames, height, width = GRID
    size = 2 * height, 2 * width
    return {
        **with_image(texts),
        "hidden_states": torch.randn(len(texts), 12, frames, *size),
        "pose_hidden_states": torch.randn(len(texts), 4, frames - 1, *size),
        "face_pixel_values": torch.randn(len(texts), 3, 4 * (frames - 2) + 1, 16, 16),
    }


ANIMATE = {
    **CONFIG, "in_channels": 12, "latent_channels": 4, "image_dim": 8, "added_kv_proj_dim": 32,
    "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}, "motion_encoder_size": 16,
    "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 1,
}  # fmt: skip
WAN = "WanTransformer3DModel"
CASES = [
    Case(WAN, CONFIG, inputs, layers=2),
    Case(WAN, {**CONFIG, **IMAGE}, with_image, layers=2, name=f"{WAN}-image"),
    Case(WAN, CONFIG, per_token, layers=2, name=f"{WAN}-timestep-per-token"),
    Case(
        "WanVACETransformer3DModel",
        {**CONFIG, "num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 6},
        vace,
        layers=5,
    ),
    Case("WanAnimateTransformer3DModel", ANIMATE, animate, layers=2),
    Case("ChronoEditTransformer3DModel", {**CONFIG, **IMAGE}, with_image, layers=2),
]
