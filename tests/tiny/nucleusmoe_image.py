"""Tiny Nucleus-Image, with padded text that has no queries."""

import torch

from tests.tiny.case import PICTURE, Case, mask, tokens, words

CONFIG = {
    "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2,
    "attention_head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
    "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6), "moe_enabled": False,
    "capacity_factors": [8.0, 8.0],
}  # fmt: skip


def inputs(texts):
    return {
        "hidden_states": tokens(texts),
        "img_shapes": [PICTURE] * len(texts),
        "encoder_hidden_states": words(texts),
        "encoder_hidden_states_mask": mask(texts),
        "timestep": torch.full((len(texts),), 0.5),
    }


NUCLEUS = "NucleusMoEImageTransformer2DModel"
MOE = {
    **CONFIG, "moe_enabled": True, "num_experts": 2, "moe_intermediate_dim": 16,
    "dense_moe_strategy": "leave_first_block_dense", "capacity_factors": [1.0, 1.0],
}  # fmt: skip
ROW = {
    "layers": 2, "grid": PICTURE, "texts": (6, 3), "extra": lambda text: text,
    "quiet": "Initializing zero-element|Dynamo detected a call to a `functools.lru_cache`",
}  # fmt: skip
CASES = [
    Case(NUCLEUS, CONFIG, inputs, **ROW),
    Case(NUCLEUS, MOE, inputs, name=f"{NUCLEUS}-experts", compiles=False, **ROW),
]  # fmt: skip
