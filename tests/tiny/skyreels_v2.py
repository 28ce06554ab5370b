"""Tiny SkyReels V2: one time step, and one per frame (diffusion forcing)."""

import torch

from tests.tiny.case import GRID, Case
from tests.tiny.wan import CONFIG, inputs

MODEL = "SkyReelsV2Transformer3DModel"


def forcing(texts):
    steps = torch.arange(100, 100 + GRID[0]).repeat(len(texts), 1)
    return {**inputs(texts), "timestep": steps, "enable_diffusion_forcing": True, "fps": [1]}


CASES = [
    Case(MODEL, CONFIG, inputs, layers=2),
    Case(MODEL, {**CONFIG, "inject_sample_info": True}, forcing, layers=2, name=f"{MODEL}-forcing"),
]
