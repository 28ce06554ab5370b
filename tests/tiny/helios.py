"""Tiny Helios: alone, and with a history whose keys are scaled."""

import torch

from tests.tiny.case import GRID, Case
from tests.tiny.wan import CONFIG as WAN
from tests.tiny.wan import inputs

MODEL = "HeliosTransformer3DModel"
CONFIG = {name: size for name, size in WAN.items() if name != "rope_max_seq_len"}
CONFIG = {**CONFIG, "rope_dim": (4, 4, 8)}
# frames at full, half and quarter scale, and tokens: 35 in a frame at full scale, 3 x 4, 2 x 2
FRAMES, HISTORY = {"short": 2, "mid": 3, "long": 5}, 2 * 35 + 2 * 12 + 2 * 4


def with_history(texts):
    given = inputs(texts)
    first, size = sum(FRAMES.values()), given["hidden_states"].shape[3:]
    given["indices_hidden_states"] = torch.arange(first, first + GRID[0]).expand(len(texts), -1)
    for name, frames in FRAMES.items():
        given[f"latents_history_{name}"] = torch.randn(len(texts), 4, frames, *size)
        given[f"indices_latents_history_{name}"] = torch.arange(frames).expand(len(texts), -1)
    return given


CASES = [
    Case(MODEL, CONFIG, inputs, layers=2),
    Case(
        MODEL, {**CONFIG, "is_amplify_history": True}, with_history, layers=2,
        extra=lambda text: HISTORY, name=f"{MODEL}-history",
    ),
]  # fmt: skip
