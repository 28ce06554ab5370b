"""The picture behind --image: read, cut to the size of the result, and handed to the pipeline."""

from __future__ import annotations

import inspect
from importlib import import_module
from math import log, sqrt
from pathlib import Path
from typing import Any

from dit_sparse.commands.model import Geometry, Trained
from dit_sparse.commands.request import Request
from dit_sparse.errors import ArgumentError

# words in the names of pipelines that start from a picture
FROM_PICTURE = ("ImageToVideo", "Img2Img", "Kontext", "Edit")


def read(path: Path) -> Any:
    """Return the picture of a file as RGB, the way up that its camera noted."""
    from PIL import Image, ImageOps

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise ArgumentError(f"--image {path}: {what}; name a PNG or JPEG file")
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ArgumentError(f"--image {path} is too large: {error}") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise ArgumentError(
            f"--image {path} is no picture that can be read, or a damaged one: use PNG or JPEG "
            f"({type(error).__name__})"
        ) from None


def taking(pipe: Any) -> Any:
    """Return the pipeline of the same models that takes a picture: itself, or image-to-image."""
    from dit_sparse.integrations.seam import DTYPE

    diffusers: Any = import_module("diffusers")
    known = inspect.signature(pipe.__call__).parameters
    name = getattr(pipe, "host_name", type(pipe).__name__)
    if "mask_image" in known:
        raise ArgumentError(f"--image is not enough for {name}: it needs a mask, call it in Python")
    if "image" in known:
        return pipe
    try:
        plain = getattr(diffusers, name).from_pipe(pipe, **{DTYPE: pipe.dtype})
        return diffusers.AutoPipelineForImage2Image.from_pipe(plain, **{DTYPE: pipe.dtype})
    except ValueError:
        others = " or ".join(_relatives(name))
        hint = f"a model for {others} does" if others else "use a model for image-to-video"
        raise ArgumentError(f"--image: {name} takes no picture; {hint}") from None


def needed(pipe: Any, request: Request) -> None:
    """Raise when a pipeline cannot do without a picture and none was given."""
    parameter = inspect.signature(pipe.__call__).parameters.get("image")
    if request.image is None and parameter is not None and parameter.default is parameter.empty:
        name = getattr(pipe, "host_name", type(pipe).__name__)
        raise ArgumentError(f"{name} starts from a picture: give one with --image FILE")


def place(
    arguments: dict[str, Any], pipe: Any, request: Request, trained: Trained, geometry: Geometry
) -> dict[str, Any]:
    """Return the arguments of the call with the picture and a size of its shape.

    A size that was asked for is kept, and the picture is cut to it; else the result has the shape
    of the picture and about as many pixels as the model makes by default.
    """
    picture = read(request.image) if request.image else None
    if picture is None:
        return arguments
    known = inspect.signature(pipe.__call__).parameters
    size = _size(arguments, picture, request, trained, geometry.space)
    sizes = {name: n for name, n in zip(("height", "width"), size, strict=True) if name in known}
    return {**arguments, **sizes, "image": cut(picture, *size)}


def cut(picture: Any, height: int, width: int) -> Any:
    """Return the middle of a picture, scaled to a size without being stretched."""
    from PIL import Image, ImageOps

    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def _size(
    arguments: dict[str, Any], picture: Any, request: Request, trained: Trained, space: int
) -> tuple[int, int]:
    """Return height and width of the result."""
    shape = picture.height / picture.width
    height, width = arguments.get("height"), arguments.get("width")
    if request.height and request.width:
        return request.height, request.width
    if trained.sizes:
        fits = [
            (h, w)
            for h, w in trained.sizes
            if request.height in (None, h) and request.width in (None, w)
        ]
        return min(fits, key=lambda s: abs(log(s[0] / s[1] / shape)))
    if request.height:
        pixels = request.height**2 / shape
    elif request.width:
        pixels = request.width**2 * shape
    else:
        pixels = height * width if height and width else picture.height * picture.width

    def fitting(length: float) -> int:
        return max(1, round(length / space)) * space

    found = fitting(sqrt(pixels * shape)), fitting(sqrt(pixels / shape))
    return request.height or found[0], request.width or found[1]


def _relatives(name: str) -> list[str]:
    """Return the pipelines of the same family that start from a picture."""
    from dit_sparse.integrations.adapters import families

    for module in families():
        hosts = getattr(module, "PIPELINES", {}).values()
        if name in hosts:
            return sorted(host for host in hosts if any(word in host for word in FROM_PICTURE))
    return []
