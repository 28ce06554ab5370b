"""FLUX.2: text, then the picture and its references; or, with their keys kept, references first."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in


def packed_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the lengths of text and packed latents [B, S, C]; positions tell the rest."""
    shown, text = (given[name].shape[1] for name in ("hidden_states", "encoder_hidden_states"))
    cache, mode = given.get("kv_cache"), given.get("kv_cache_mode")
    first = given.get("num_ref_tokens", 0) if mode == "extract" else 0
    kept = cache.num_ref_tokens if mode == "cached" and cache is not None else 0
    return 1, 1, shown - first, text + first + kept, 0


ADAPTERS = (
    Adapter(
        classes=("Flux2Transformer2DModel",),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        sizes=packed_sizes,
        ids="img_ids",
        text="prefix",
        needs="0.36.0",
        note="references attend to themselves alone, dense, in the step that keeps their keys",
    ),
)

PIPELINES = {
    "SparseFlux2Pipeline": "Flux2Pipeline",
    "SparseFlux2KleinPipeline": "Flux2KleinPipeline",
    "SparseFlux2KleinInpaintPipeline": "Flux2KleinInpaintPipeline",
    "SparseFlux2KleinKVPipeline": "Flux2KleinKVPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
