"""Tiny MiniMax H3: text, a picture, sound and the video in one sequence."""

import math

import torch

from tests.tiny.case import GRID, Case

PICTURE, SOUND, BOX = 35, 5, math.prod(GRID)


def inputs(texts):
    text = max(texts)
    sizes = {"text": text, "picture": PICTURE, "sound": SOUND, "video": BOX}
    place = torch.cartesian_prod(*(torch.arange(size) for size in GRID)).double()
    place[:, 0] = text + 0.25 * place[:, 0]
    ids = torch.zeros(sum(sizes.values()), 3, dtype=torch.float64)
    ids[:text, 0] = torch.arange(text)
    where = dict(zip(sizes, torch.arange(len(ids)).split(list(sizes.values())), strict=True))
    # the picture has a time of its own, far from the video
    ids[where["picture"]] = place[:PICTURE] - torch.tensor([9.0, 0, 0])
    ids[where["sound"], 0] = torch.arange(SOUND).double()
    ids[where["video"]] = place
    tags, times = (torch.zeros(len(ids), dtype=torch.long) for _ in range(2))
    tags[where["sound"]], tags[where["text"]], times[where["picture"]] = 1, 2, 1
    return {
        "hidden_states": torch.randn(len(texts), PICTURE + BOX, 16),
        "audio_hidden_states": torch.randn(len(texts), SOUND, 4),
        "encoder_hidden_states": torch.randn(len(texts), text, 16),
        "timestep": torch.tensor([500.0, 0.0, 1.0]),
        "timestep_indices": times,
        "token_tags": tags,
        "position_ids": ids,
        "video_indices": torch.cat([where["picture"], where["video"]]),
        "audio_indices": where["sound"],
        "text_indices": where["text"],
    }


CASES = [
    Case(
        "MiniMaxH3Transformer3DModel",
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "hidden_size": 32, "num_layers": 2,
            "num_refiner_layers": 1, "ffn_dim": 32, "in_channels": 4, "audio_in_channels": 4,
            "text_dim": 16, "freq_dim": 8, "time_embed_hidden_dim": 16, "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        inputs,
        layers=2,
        extra=lambda text: text + PICTURE + SOUND,
        out=list,
    )
]  # fmt: skip
