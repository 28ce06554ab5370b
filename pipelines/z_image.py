"""Z-Image: lists of pictures and texts, each padded to a multiple of 32 tokens, which count."""

from collections.abc import Mapping
from typing import Any

from dit_sparse.integrations.adapters import Adapter, Sizes
from dit_sparse.integrations.sequence import REST
from dit_sparse.pipelines._adapter import drop_in


def listed_sizes(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the picture from a list of latents [C, T, H, W]; all samples must be of one size.

    basic: picture, text. omni, a list of lists: texts, pictures of which the last is the result,
    features [H, W, C].
    """
    samples = given["x"]
    omni = isinstance(samples[0], list)
    sizes = {tuple((sample[-1] if omni else sample).shape[1:]) for sample in samples}
    p, t = given.get("patch_size", 2), given.get("f_patch_size", 1)
    frames, height, width = sizes.pop()
    box = frames // t, height // p, width // p
    if not omni:
        return (0, 0, 0, 0, 0) if sizes else (*box, 0, REST)
    features = given.get("siglip_feats") or [None]
    shown = features[0] is not None and module.siglip_embedder is not None
    behind = {sum(map(_padded, of or [])) if shown else 0 for of in features}
    after = behind.pop() + -(box[0] * box[1] * box[2]) % 32
    return (0, 0, 0, 0, 0) if sizes or behind else (*box, REST, after)


def _padded(features: Any) -> int:
    """Return the tokens that features [H, W, C] or None become."""
    return 32 if features is None else -(-features.shape[0] * features.shape[1] // 32) * 32


ADAPTERS = (
    Adapter(
        classes=("ZImageTransformer2DModel",),
        attention=r"layers\.\d+\.attention",
        sizes=listed_sizes,
        mask="keys",
        timestep="t",
        text="packed",
        needs="0.36.0",
        note="a list of pictures of different sizes stays dense",
    ),
)

PIPELINES = {
    "SparseZImagePipeline": "ZImagePipeline",
    "SparseZImageImg2ImgPipeline": "ZImageImg2ImgPipeline",
    "SparseZImageInpaintPipeline": "ZImageInpaintPipeline",
    "SparseZImageControlNetPipeline": "ZImageControlNetPipeline",
    "SparseZImageControlNetInpaintPipeline": "ZImageControlNetInpaintPipeline",
    "SparseZImageOmniPipeline": "ZImageOmniPipeline",
}
__getattr__ = drop_in(__name__, PIPELINES)
