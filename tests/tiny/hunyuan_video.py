"""Tiny HunyuanVideo and FramePack."""

import torch

from tests.tiny.case import GRID, Case

CONFIG = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
    "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1, "patch_size": 2,
    "patch_size_t": 1, "guidance_embeds": True, "text_embed_dim": 16, "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 4, 8),
}  # fmt: skip
FRAMEPACK = {
    **CONFIG, "image_condition_type": "latent_concat", "has_image_proj": True,
    "image_proj_dim": 8, "has_clean_x_embedder": True,
}  # fmt: skip
IMAGE = 4
# frames of the history at full, half and quarter scale, and its tokens: 35 in a frame at full
# scale, 3 x 4 at half, 2 x 2 at quarter
FRAMES, HISTORY = {"clean": 1, "history_2x": 3, "history_4x": 5}, 35 + 2 * 12 + 2 * 4


def mask(texts):
    """Return bool [B, longest], True where a sample has text."""
    return torch.arange(max(texts)) < torch.tensor(texts)[:, None]


def inputs(texts):
    frames, height, width = GRID
    return {
        "hidden_states": torch.randn(len(texts), 4, frames, 2 * height, 2 * width),
        "timestep": torch.full((len(texts),), 500),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
        "encoder_attention_mask": mask(texts),
        "pooled_projections": torch.randn(len(texts), 8),
        "guidance": torch.full((len(texts),), 6000.0),
    }


def with_history(texts):
    given = {**inputs(texts), "image_embeds": torch.randn(len(texts), IMAGE, 8)}
    first, size = sum(FRAMES.values()), given["hidden_states"].shape[3:]
    given["indices_latents"] = torch.arange(first, first + GRID[0])
    for name, frames in FRAMES.items():
        given[f"latents_{name}"] = torch.randn(len(texts), 4, frames, *size)
        given[f"indices_latents_{name}"] = torch.arange(frames)
    return given


CASES = [
    Case(
        "HunyuanVideoTransformer3DModel", CONFIG, inputs, layers=4, texts=(6, 3),
        extra=lambda text: text,
    ),
    # one sample alone has its padding cut by a number that the mask tells
    Case(
        "HunyuanVideoFramepackTransformer3DModel", FRAMEPACK, with_history, layers=4, texts=(6, 3),
        extra=lambda text: text + IMAGE + HISTORY, compiles=False,
    ),
]  # fmt: skip
