"""Tiny FLUX.2: pictures one after another; with the keys of references first taken, then kept."""

from types import SimpleNamespace

import torch
from diffusers.models.transformers import transformer_flux2 as host

from tests.tiny.case import PICTURE, Case, positions, tokens, words

CONFIG = {
    "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "in_channels": 4, "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 4, 4),
    "timestep_guidance_channels": 16,
}  # fmt: skip
OTHER = (4, 3)
HELD = OTHER[0] * OTHER[1]


def places(frame, size=PICTURE[1:]):
    ids = positions(frame, size)
    return torch.cat([ids, torch.zeros(len(ids), 1)], 1)


def inputs(texts, *pictures):
    ids = torch.cat(pictures or [places(0)])
    return {
        "hidden_states": tokens(texts, len(ids)),
        "encoder_hidden_states": words(texts),
        "timestep": torch.full((len(texts),), 0.5),
        "img_ids": ids.expand(len(texts), -1, -1),
        "txt_ids": torch.zeros(len(texts), max(texts), 4),
        "guidance": torch.full((len(texts),), 4.0),
    }


def taken(texts):
    given = inputs(texts, places(10, OTHER), places(0))
    return {**given, "kv_cache_mode": "extract", "num_ref_tokens": HELD}


class Kept(list):
    """A filled cache, as diffusers has it: of each sample keys and values [layers, 2, S, H, D]."""

    num_ref_tokens = HELD

    def __getitem__(self, samples):
        return Kept(super().__getitem__(samples))

    def get_double(self, number):
        return SimpleNamespace(get=lambda: torch.stack(list(self), 2)[number])

    def get_single(self, number):
        return self.get_double(CONFIG["num_layers"] + number)


def kept(texts):
    cache = Kept(torch.randn(3, 2, HELD, 2, 16) for _ in texts)
    return {**inputs(texts), "kv_cache_mode": "cached", "kv_cache": cache}


def keeping(model):
    for block in model.transformer_blocks:
        block.attn.set_processor(host.Flux2KVAttnProcessor())
    for block in model.single_transformer_blocks:
        block.attn.set_processor(host.Flux2KVParallelSelfAttnProcessor())


FLUX = "Flux2Transformer2DModel"
CASES = [
    Case(FLUX, CONFIG, inputs, layers=3, grid=PICTURE, extra=lambda text: text),
    Case(
        FLUX, CONFIG, lambda texts: inputs(texts, places(0), places(10), places(20, OTHER)),
        layers=3, grid=(2, *PICTURE[1:]), extra=lambda text: text + HELD, name=f"{FLUX}-references",
    ),
    Case(
        FLUX, CONFIG, taken, layers=3, grid=PICTURE, extra=lambda text: text + HELD, setup=keeping,
        others=1, compiles=False, name=f"{FLUX}-taking-keys",
    ),
    Case(
        FLUX, CONFIG, kept, layers=3, grid=PICTURE, extra=lambda text: text + HELD, setup=keeping,
        compiles=False, name=f"{FLUX}-keeping-keys",
    ),
]  # fmt: skip
