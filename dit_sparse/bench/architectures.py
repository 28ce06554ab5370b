"""Real architectures with random weights: constructor arguments as published, and their inputs.

A model is built on the meta device and filled on the real one: nothing is downloaded, and no
initialisation of billions of weights is waited for. Names are those of `integrations/published.py`,
so that a model takes the settings that papers give for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dit_sparse.bench.check import NotTimed
from dit_sparse.bench.machine import free_bytes, gib
from dit_sparse.bench.results import Shape
from dit_sparse.core import Grid

# (height, width, frames) in pixels
Size = tuple[int, int, int]
# draws a normal tensor of some shape
Make = Callable[..., Tensor]
Config = Mapping[str, Any]
STD = 0.02  # of matrices; with norms of 1 the activations stay of order 1


@dataclass(frozen=True)
class Architecture:
    """One published transformer.

    transformer: class of diffusers. config: its arguments. tiny: arguments that make it small
    enough to run in a moment, the same code otherwise. sizes: what it is timed at. text: length of
    the text; joint: it stands in the self-attention's sequence. inputs: (config, latent frames,
    height and width, text, make) -> arguments of forward, without timestep.
    """

    name: str
    transformer: str
    config: Config
    tiny: Config
    sizes: tuple[Size, ...]
    text: int
    joint: bool
    inputs: Callable[[Config, Size, int, Make], dict[str, Any]]
    masked: bool = False

    @property
    def small(self) -> tuple[Size, ...]:
        """What its tiny form is timed at: a few hundred tokens."""
        return ((128, 128, 9),) if self.sizes[0][2] > 1 else ((256, 256, 1),)

    def shape(self, size: Size, small: bool) -> Shape:
        """Return the self-attention of one layer: latents of 8 x 8 x 4 pixels, patches of 2 x 2."""
        config = self.arguments(small)
        height, width, frames = size
        text = self.length(small) if self.joint else 0
        grid = Grid((frames - 1) // 4 + 1, height // 16, width // 16, text)
        label = f"{self.name} {'x'.join(map(str, size))}"
        return Shape.video(label, config["num_attention_heads"], config["attention_head_dim"], grid)

    def arguments(self, small: bool) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**self.config, **(self.tiny if small else {})}

    def length(self, small: bool) -> int:
        """Return the length of the text."""
        return 8 if small else self.text

    def draw(self, size: Size, small: bool, make: Make) -> dict[str, Any]:
        """Return the arguments of forward for a video of this size, without timestep."""
        height, width, frames = size
        latent = (height // 8, width // 8, (frames - 1) // 4 + 1)
        return self.inputs(self.arguments(small), latent, self.length(small), make)

    def build(self, device: torch.device, dtype: torch.dtype, small: bool) -> Any:
        """Return the model with random weights; raise when they do not fit."""
        cls = getattr(importlib.import_module("diffusers"), self.transformer, None)
        if cls is None:
            raise NotTimed(f"this diffusers has no {self.transformer}")
        config = self.arguments(small)
        with torch.device("meta"):
            model = cls(**config)
        need = sum(p.numel() for p in model.parameters()) * dtype.itemsize
        free = free_bytes(device)
        if need > 0.9 * free:
            raise NotTimed(f"its weights take {gib(need)}, {gib(free)} are free")
        model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
        fill(model)
        if any(True for _ in model.buffers()):
            # tables, empty on the meta device; a copy of one layer computes the same, in the dtype
            # that they keep whatever that of the weights
            layers = [k for k in config if k in ("num_layers", "num_single_layers")]
            with torch.device(device):
                small_copy = cls(**{**config, **dict.fromkeys(layers, 1)})
            for name, table in small_copy.named_buffers():
                path, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(path), leaf, table)
        return model


def fill(model: nn.Module) -> None:
    """Give every parameter a seeded value: norm scales 1, biases 0, all else small normals."""
    for number, (name, p) in enumerate(model.named_parameters()):
        if p.dim() < 2:
            p.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            g = torch.Generator(p.device).manual_seed(number)
            p.normal_(0, STD, generator=g)


def _wan(config: Config, latent: Size, text: int, make: Make) -> dict[str, Any]:
    height, width, frames = latent
    return {
        "hidden_states": make(1, config["in_channels"], frames, height, width),
        "encoder_hidden_states": make(1, text, config["text_dim"]),
    }


def _hunyuan(config: Config, latent: Size, text: int, make: Make) -> dict[str, Any]:
    height, width, frames = latent
    states = make(1, config["in_channels"], frames, height, width)
    return {
        "hidden_states": states,
        "encoder_hidden_states": make(1, text, config["text_embed_dim"]),
        "encoder_attention_mask": torch.ones(1, text, device=states.device, dtype=torch.long),
        "pooled_projections": make(1, config["pooled_projection_dim"]),
        "guidance": torch.full((1,), 6000.0, device=states.device, dtype=states.dtype),
    }


def _cogvideox(config: Config, latent: Size, text: int, make: Make) -> dict[str, Any]:
    height, width, frames = latent
    states = make(1, frames, config["in_channels"], height, width)
    # any angles will do: they turn q and k and change no time
    angle = make(frames * height * width // 4, config["attention_head_dim"] // 2).float()
    angle = angle.repeat_interleave(2, -1)
    return {
        "hidden_states": states,
        "encoder_hidden_states": make(1, text, config["text_embed_dim"]),
        "image_rotary_emb": (angle.cos(), angle.sin()),
    }


def _flux(config: Config, latent: Size, text: int, make: Make) -> dict[str, Any]:
    height, width = latent[0] // 2, latent[1] // 2
    states = make(1, height * width, config["in_channels"])
    ids = torch.zeros(height, width, 3, device=states.device)
    ids[..., 1] += torch.arange(height, device=states.device)[:, None]
    ids[..., 2] += torch.arange(width, device=states.device)[None]
    return {
        "hidden_states": states,
        "encoder_hidden_states": make(1, text, config["joint_attention_dim"]),
        "pooled_projections": make(1, config["pooled_projection_dim"]),
        "img_ids": ids.flatten(0, 1),
        "txt_ids": torch.zeros(text, 3, device=states.device),
        "guidance": torch.full((1,), 3.5, device=states.device, dtype=states.dtype),
    }


WAN_13B: Config = {
    "patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128,
    "in_channels": 16, "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960,
    "num_layers": 30, "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "eps": 1e-6,
    "rope_max_seq_len": 1024,
}  # fmt: skip
WAN_14B: Config = {**WAN_13B, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
WAN_TINY: Config = {
    "num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 32, "freq_dim": 16,
    "ffn_dim": 64, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip
HUNYUAN: Config = {
    "in_channels": 16, "out_channels": 16, "num_attention_heads": 24, "attention_head_dim": 128,
    "num_layers": 20, "num_single_layers": 40, "num_refiner_layers": 2, "mlp_ratio": 4.0,
    "patch_size": 2, "patch_size_t": 1, "qk_norm": "rms_norm", "guidance_embeds": True,
    "text_embed_dim": 4096, "pooled_projection_dim": 768, "rope_theta": 256.0,
    "rope_axes_dim": (16, 56, 56),
}  # fmt: skip
HUNYUAN_TINY: Config = {
    "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "num_single_layers": 1,
    "num_refiner_layers": 1, "text_embed_dim": 32, "pooled_projection_dim": 8,
    "rope_axes_dim": (4, 6, 6),
}  # fmt: skip
COGVIDEOX_5B: Config = {
    "num_attention_heads": 48, "attention_head_dim": 64, "in_channels": 16, "out_channels": 16,
    "flip_sin_to_cos": True, "freq_shift": 0, "time_embed_dim": 512, "text_embed_dim": 4096,
    "num_layers": 42, "attention_bias": True, "sample_width": 90, "sample_height": 60,
    "sample_frames": 49, "patch_size": 2, "temporal_compression_ratio": 4,
    "max_text_seq_length": 226, "use_rotary_positional_embeddings": True,
}  # fmt: skip
COGVIDEOX_TINY: Config = {
    "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 16,
    "text_embed_dim": 32, "num_layers": 2, "max_text_seq_length": 8,
}  # fmt: skip
FLUX_DEV: Config = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
FLUX_TINY: Config = {
    "in_channels": 8, "num_layers": 4, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 8,
    "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
P480, P720 = (480, 832, 81), (720, 1280, 81)
ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "wan2.1-1.3b", "WanTransformer3DModel", WAN_13B, WAN_TINY, (P480,), 512, False, _wan
        ),
        Architecture(
            "wan2.1-14b", "WanTransformer3DModel", WAN_14B, WAN_TINY, (P480, P720), 512, False, _wan
        ),
        Architecture(
            "hunyuanvideo", "HunyuanVideoTransformer3DModel", HUNYUAN, HUNYUAN_TINY,
            ((720, 1280, 129),), 256, True, _hunyuan, True,
        ),
        Architecture(
            "cogvideox-5b", "CogVideoXTransformer3DModel", COGVIDEOX_5B, COGVIDEOX_TINY,
            ((480, 720, 49),), 226, True, _cogvideox,
        ),
        Architecture(
            "flux.1", "FluxTransformer2DModel", FLUX_DEV, FLUX_TINY, ((1024, 1024, 1),), 512, True,
            _flux,
        ),
    )
}  # fmt: skip
