"""Which published model a transformer is, told from its configuration alone.

The name chooses the settings that papers give for it: the profile `<name>--<method>`. Weights are
not looked at, so a fine-tuned copy counts as the model it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Published:
    """One model: its name, its transformer class, and entries of its configuration.

    experts: number of transformers in its pipeline.
    """

    name: str
    transformer: str
    config: Mapping[str, Any] = field(default_factory=dict)
    experts: int = 1


WAN, HUNYUAN = "WanTransformer3DModel", "HunyuanVideoTransformer3DModel"
COGVIDEOX, FLUX = "CogVideoXTransformer3DModel", "FluxTransformer2DModel"
# the more special row comes first
MODELS = (
    Published("shapes", WAN, {"num_layers": 8, "num_attention_heads": 4, "text_dim": 128}),
    Published("wan2.1-1.3b", WAN, {"num_layers": 30, "num_attention_heads": 12}),
    Published("wan2.2-5b", WAN, {"num_layers": 30, "num_attention_heads": 24, "in_channels": 48}),
    Published("wan2.2-a14b-i2v", WAN, {"num_layers": 40, "in_channels": 36}, experts=2),
    Published("wan2.2-a14b", WAN, {"num_layers": 40, "num_attention_heads": 40}, experts=2),
    Published("wan2.1-14b-i2v", WAN, {"num_layers": 40, "in_channels": 36}),
    Published("wan2.1-14b", WAN, {"num_layers": 40, "num_attention_heads": 40}),
    Published("hunyuanvideo", HUNYUAN, {"num_layers": 20, "num_single_layers": 40}),
    Published("cogvideox1.5-5b", COGVIDEOX, {"num_layers": 42, "patch_size_t": 2}),
    Published("cogvideox-5b", COGVIDEOX, {"num_layers": 42}),
    Published("flux.1", FLUX, {"num_layers": 19, "num_single_layers": 38}),
)


def published(transformers: Mapping[str, nn.Module]) -> str | None:
    """Return the name of the model these transformers are, None when it is none of `MODELS`."""
    root = next(iter(transformers.values()))
    classes = {base.__name__ for base in type(root).__mro__}
    config = getattr(root, "config", {})
    for row in MODELS:
        same = all(config.get(key) == value for key, value in row.config.items())
        if row.transformer in classes and same and row.experts <= len(transformers):
            return row.name
    return None
