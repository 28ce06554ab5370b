"""Tiny Allegro; its positions are handed in."""

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

from tests.tiny.case import GRID, Case
from tests.tiny.hunyuan_video import mask


def inputs(texts):
    frames, height, width = GRID
    freqs = get_3d_rotary_pos_embed_allegro(
        embed_dim=24, temporal_size=frames, interpolation_scale=(2.0, 2.0, 2.0),
        crops_coords=((0, 0), (height, width)), grid_size=(height, width),
    )[:3]  # fmt: skip
    places = torch.cartesian_prod(*(torch.arange(size) for size in GRID))
    return {
        "hidden_states": torch.randn(len(texts), 4, frames, 2 * height, 2 * width),
        "encoder_hidden_states": torch.randn(len(texts), max(texts), 16),
        "timestep": torch.full((len(texts),), 500),
        "encoder_attention_mask": mask(texts).long(),
        "image_rotary_emb": (freqs, tuple(places.T[:, None])),
    }


CASES = [
    Case(
        "AllegroTransformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4,
            "out_channels": 4, "num_layers": 2, "cross_attention_dim": 48, "sample_width": 14,
            "sample_height": 10, "sample_frames": 3, "caption_channels": 16,
        },
        inputs,
        layers=2,
        texts=(6, 3),
    )
]  # fmt: skip
