"""Grids read from latents, for the families that lay them out alike."""

from collections.abc import Iterable, Mapping
from typing import Any

from dit_sparse.integrations.adapters import Sizes, joined
from dit_sparse.integrations.sequence import REST


def patch(module: Any) -> tuple[int, int, int]:
    """Return the patch of a transformer: frames, height, width."""
    size = module.config.patch_size
    if isinstance(size, int):
        return module.config.get("patch_size_t") or 1, size, size
    frames, height, width = (1, *size)[-3:]
    return frames, height, width


def volume(module: Any, given: Mapping[str, Any], axes: tuple[int, int, int] = (2, 3, 4)) -> Sizes:
    """Read the grid from latents [B, C, T, H, W]; text is attended to elsewhere.

    axes: which of a tensor's are frames, height and width.
    """
    shape = given["hidden_states"].shape
    frames, height, width = (shape[n] // p for n, p in zip(axes, patch(module), strict=True))
    return frames, height, width, 0, 0


def patches(latents: Any, size: Iterable[int]) -> int:
    """Return how many patches of (frames, height, width) latents [B, C, T, H, W] are padded to."""
    frames, height, width = (-(-n // p) for n, p in zip(latents.shape[2:], size, strict=True))
    return frames * height * width


def frames_first(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, T, C, H, W]."""
    return volume(module, given, axes=(1, 3, 4))


def channels_last(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, T, H, W, C]."""
    return volume(module, given, axes=(1, 2, 3))


def volume_and_text(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, T, H, W], and text [B, S, C] behind it."""
    return *volume(module, given)[:3], 0, given["encoder_hidden_states"].shape[1]


def volume_and_rest(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, T, H, W]; all other tokens of a call stand behind it."""
    return *volume(module, given)[:4], REST


def picture(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, H, W]; text is attended to elsewhere."""
    height, width = given["hidden_states"].shape[2:]
    _, h, w = patch(module)
    return 1, height // h, width // w, 0, 0


def text_and_picture(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, H, W], and text [B, S, C] before it."""
    return *picture(module, given)[:3], given["encoder_hidden_states"].shape[1], 0


def picture_and_text(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the grid from latents [B, C, H, W], and text [B, S, C] behind it."""
    return *picture(module, given)[:3], 0, given["encoder_hidden_states"].shape[1]


def text_and_packed(module: Any, given: Mapping[str, Any]) -> Sizes:
    """Read the lengths of text [B, S, C] and packed latents [B, S, C]; positions tell the rest."""
    return 1, 1, given["hidden_states"].shape[1], given["encoder_hidden_states"].shape[1], 0


def pictures(given: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Read the box of the pictures of one size in `img_shapes`, and how many tokens come behind.

    img_shapes: (frames, height, width) of the picture or of each, or a list of these per sample.
    """
    shapes = given["img_shapes"]
    shapes = shapes[0] if isinstance(shapes, list) else shapes
    return joined(shapes if isinstance(shapes, list) else [shapes])
