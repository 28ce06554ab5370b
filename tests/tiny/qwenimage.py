"""Tiny Qwen-Image: padded text, pictures to edit, layers; and 2.1, first step and later ones."""

import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVLayerCache

from tests.tiny.case import PICTURE, Case, mask, tokens, words

CONFIG = {
    "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
OTHER = (1, 4, 6)


def inputs(texts, *others):
    shapes = [PICTURE, *others]
    return {
        "hidden_states": tokens(texts, sum(f * h * w for f, h, w in shapes)),
        "encoder_hidden_states": words(texts),
        "encoder_hidden_states_mask": mask(texts),
        "timestep": torch.full((len(texts),), 0.5),
        "img_shapes": [shapes] * len(texts),
    }


def layered(texts):
    given = inputs(texts, PICTURE)
    return {**given, "additional_t_cond": torch.zeros(len(texts), dtype=torch.long)}


LAYERED = {**CONFIG, "use_additional_t_cond": True, "use_layer3d_rope": True}
CONFIG21 = {
    "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "context_in_dim": 16, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
EVEN = (1, 6, 10)


def first(texts):
    """Text, a picture in the place of four tokens, text, and the picture to make."""
    shown = torch.zeros(len(texts), max(texts) + 6 + 15, dtype=torch.bool)
    shown[:, 2:8] = shown[:, -15:] = True
    valid = torch.cat([torch.ones(len(texts), 6, dtype=torch.bool), mask(texts)], 1)
    return {
        "hidden_states": tokens(texts, 24 + 60),
        "encoder_hidden_states": tokens(texts, max(texts) + 6, 16),
        "timestep": torch.full((1,), 0.5),
        "img_shapes": [[OTHER, EVEN]] * len(texts),
        "img_mask": shown,
        "encoder_hidden_states_mask": valid,
    }


class Kept(list):
    """A filled cache, as diffusers has it: of each sample keys and values [layers, 2, S, H, D]."""

    def __getitem__(self, samples):
        return Kept(super().__getitem__(samples))

    def get_layer(self, number):
        layer = QwenImage21KVLayerCache()
        layer.store(*torch.stack(list(self), 2)[number])
        return layer


def later(texts):
    keys = Kept(torch.randn(2, 2, max(texts) + 24, 2, 16) for _ in texts)
    return {**first(texts), "kv_cache": keys, "kv_cache_mode": "cached"}


QWEN, NEW = "QwenImageTransformer2DModel", "QwenImage21Transformer2DModel"
QUIET = "Dynamo detected a call to a `functools.lru_cache`"
ROW = {"texts": (6, 3), "extra": lambda text: text, "layers": 2, "quiet": QUIET}
PAIR = (2, *PICTURE[1:])
CASES = [
    Case(QWEN, CONFIG, inputs, grid=PICTURE, **ROW),
    Case(QWEN, CONFIG, lambda texts: inputs(texts, PICTURE), grid=PAIR, name=f"{QWEN}-edit", **ROW),
    Case(
        QWEN, {**CONFIG, "zero_cond_t": True}, lambda texts: inputs(texts, OTHER), grid=PICTURE,
        layers=2, texts=(6, 3), extra=lambda text: text + 24, quiet=QUIET,
        name=f"{QWEN}-edit-another-size",
    ),
    Case(QWEN, LAYERED, layered, grid=PAIR, name=f"{QWEN}-layered", **ROW),
    Case(
        NEW, CONFIG21, first, layers=2, grid=EVEN, texts=(6, 3), extra=lambda text: text + 24,
        others=3, compiles=False,
    ),
    Case(
        NEW, CONFIG21, later, layers=2, grid=EVEN, texts=(6, 3), extra=lambda text: text + 24,
        compiles=False, name=f"{NEW}-keeping-keys",
    ),
]  # fmt: skip
