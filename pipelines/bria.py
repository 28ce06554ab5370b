"""Bria 3.2, FIBO and FIBO 2: text, or tokens made of it, then the picture and its references."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.pipelines._adapter import drop_in
from dit_sparse.pipelines._sizes import patch, picture, text_and_packed


def gist_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, H, W]; references [B, C, H, W] stand behind it.

    A number of tokens that follows from the length of the text stands before it, or, where the
    samples differ in it, behind all. Waits for the device, as the model itself does.
    """
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    box, config = picture(module, given)[:3], module.config
    _, h, w = patch(module)
    shapes = [x.shape[2:] for x in given.get("context_latents") or []]
    behind = sum((height // h) * (width // w) for height, width in shapes)
    text, mask = given["encoder_hidden_states"], given.get("encoder_attention_mask")
    lengths = [text.shape[2]] if mask is None else mask.sum(1).tolist()
    gist = compute_gist_count(
        lengths,
        min_gist=config.min_num_gist_tokens,
        max_gist=config.max_num_gist_tokens,
        gist_step=config.gist_step,
        min_text_len=config.gist_min_text_len,
        max_text_len=config.gist_max_text_len,
    )
    return (*box, gist[0], behind) if len(set(gist)) == 1 else (*box, 0, behind + max(gist))


ADAPTERS = (
    Adapter(
        classes=("BriaTransformer2DModel", "BriaFiboTransformer2DModel"),
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        sizes=text_and_packed,
        ids="img_ids",
        mask="keys",
        text="prefix",
        needs="0.36.0",
    ),
    Adapter(
        classes=("BriaFibo2Transformer2DModel",),
        attention=r"layers\.\d+\.attention",
        sizes=gist_sizes,
        mask="keys",
        text="prefix",
        needs="0.42.0",
    ),
)

PIPELINES = {
    "SparseBriaPipeline": "BriaPipeline",
    "SparseBriaFiboPipeline": "BriaFiboPipeline",
    "SparseBriaFiboEditPipeline": "BriaFiboEditPipeline",
    "SparseBriaFibo2Pipeline": "BriaFibo2Pipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
