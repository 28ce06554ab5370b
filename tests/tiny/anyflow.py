"""Tiny AnyFlow: frames in the second axis, two time steps per frame."""

import torch

from tests.tiny.case import GRID, Case
from tests.tiny.wan import CONFIG
from tests.tiny.wan import inputs as wan_inputs


def inputs(texts):
    given = wan_inputs(texts)
    return {
        **given,
        "hidden_states": given["hidden_states"].transpose(1, 2),
        "timestep": torch.full((len(texts), GRID[0]), 500),
        "r_timestep": torch.full((len(texts), GRID[0]), 400),
    }


CASES = [Case("AnyFlowTransformer3DModel", CONFIG, inputs, layers=2)]
