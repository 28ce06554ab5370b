"""The model behind --model: where it lies, what it was trained for, what sizes it can make."""

from __future__ import annotations

import inspect
import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from math import lcm
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dit_sparse.commands.request import DTYPES, Request
from dit_sparse.errors import ArgumentError, DitSparseError

BUILT_IN, BUILT_IN_TEXT = "shapes", "needle"  # of videos, of texts


def locate(name: str) -> Path | str:
    """Return the pipeline folder that --model names, or the hub id when it names none."""
    if name == BUILT_IN:
        folder = Path(__file__).resolve().parent.parent / "models" / BUILT_IN
        if not (folder / "model_index.json").is_file():
            raise ArgumentError(f"--model {BUILT_IN}: its weights are not installed in {folder}")
        return folder
    if name == BUILT_IN_TEXT:
        raise ArgumentError(
            f"--model {name} answers texts; use it with `lm` or `eval --task needle`"
        )

    def wrong(folder: Path) -> str:
        known = (folder / "model_index.json").is_file()
        return "" if known else "is no diffusers pipeline: no model_index.json"

    return found(name, BUILT_IN, "pipeline", wrong)


def found(name: str, built_in: str, kind: str, wrong: Callable[[Path], str]) -> Path | str:
    """Return the folder that --model names, or the hub id when it names none.

    kind: of the model. wrong: says why a folder holds none of the kind, "" where it does.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if why := wrong(folder):
            raise ArgumentError(f"--model {name} {why}")
        return folder
    if folder.exists():
        raise ArgumentError(f"--model {name} is a file; name the folder of a {kind}")
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        return name
    raise ArgumentError(
        f"--model {name}: no such folder; use {built_in}, the folder of a {kind} or a hub id "
        "(owner/name)"
    )


@dataclass(frozen=True)
class Trained:
    """What a model folder's `trained.json` says: offered sizes and lengths, defaults, words."""

    sizes: tuple[tuple[int, int], ...] = ()  # (height, width)
    frames: tuple[int, ...] = ()
    default: dict[str, Any] = field(default_factory=dict)  # by the argument's name in __call__
    fps: float | None = None
    words: frozenset[str] = frozenset()

    @classmethod
    def read(cls, place: Path | str) -> Trained:
        """Read `trained.json` of a model folder; a model without one offers everything."""
        path = Path(place) / "trained.json"
        if not isinstance(place, Path) or not path.is_file():
            return cls()
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                sizes=tuple((int(h), int(w)) for h, w in told.get("sizes", [])),
                frames=tuple(sorted(int(n) for n in told.get("frames", []))),
                default=dict(told.get("default", {})),
                fps=told.get("fps"),
                words=frozenset(told.get("vocabulary", [])),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise ArgumentError(f"{path} cannot be read: {error}") from None

    def check(self, asked: dict[str, Any]) -> None:
        """Raise when the height, width or num_frames asked for was not trained."""
        height, width, frames = (asked.get(n) for n in ("height", "width", "num_frames"))
        if self.sizes and height and width and (height, width) not in self.sizes:
            best = min(self.sizes, key=lambda s: abs(s[0] - height) + abs(s[1] - width))
            raise ArgumentError(
                f"{height} x {width} (height x width) is not offered by this model; "
                f"nearest: {best[0]} x {best[1]}; "
                f"all: {', '.join(f'{h} x {w}' for h, w in self.sizes)}"
            )
        if self.frames and frames is not None and frames not in self.frames:
            best = min(self.frames, key=lambda n: abs(n - frames))
            raise ArgumentError(
                f"--frames {frames} is not offered by this model; nearest: {best}; "
                f"all: {', '.join(map(str, self.frames))}"
            )

    def unknown_words(self, prompt: str) -> dict[str, str]:
        """Map each word of the prompt that was never trained to the nearest known one, or ""."""
        import difflib

        if not self.words:
            return {}
        words = dict.fromkeys(re.findall(r"\w[\w'-]*", prompt.lower()))
        near = difflib.get_close_matches
        return {
            word: next(iter(near(word, sorted(self.words), n=1, cutoff=0.6)), "")
            for word in words
            if word not in self.words
        }


def device_of(name: str) -> str:
    """Return the torch device that --device names; raise when it is not there."""
    import torch

    count = torch.cuda.device_count()
    if name == "auto":
        return "cuda" if count else "cpu"
    if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= count:
        raise ArgumentError(f"--device {name}: {count or 'no'} GPU found; use --device cpu")
    return name


def go_offline_without_network() -> None:
    """Tell the hub library not to try, and retry, when its host has no address from here.

    Models in the cache then load at once. Must run before that library is imported.
    """
    proxies = {"http_proxy", "https_proxy", "all_proxy"} & {name.lower() for name in os.environ}
    if proxies or "HF_HUB_OFFLINE" in os.environ:
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def load(request: Request, place: Path | str) -> Any:
    """Load the pipeline, dense, on the device and in the number format asked for."""
    import torch

    import dit_sparse

    # the folder has no __init__.py, so type checkers cannot see what it offers
    pipelines: Any = import_module("dit_sparse.pipelines")
    device, dtype = device_of(request.device), request.dtype
    if dtype == "auto":
        small = device == "cpu" or request.model == BUILT_IN
        dtype = "float32" if small else "bfloat16"
    try:
        number_format = getattr(torch, DTYPES[dtype])
        pipe = pipelines.load(str(place), method="dense", torch_dtype=number_format)
    except DitSparseError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        if isinstance(place, Path):
            raise ArgumentError(f"--model {request.model} cannot be loaded: {error}") from error
        raise ArgumentError(
            f"--model {place} is no folder here and cannot be fetched from the Hugging Face hub: "
            f"{error}"
        ) from error
    return dit_sparse.disable(pipe).to(device)


def compile_parts(pipe: Any) -> None:
    """Compile the transformers of a pipeline, block by block where that is offered."""
    from dit_sparse.integrations.adapters import COMPONENTS

    for name in COMPONENTS:
        part = getattr(pipe, name, None)
        if part is not None:
            blocks = getattr(part, "_repeated_blocks", None)
            (part.compile_repeated_blocks if blocks else part.compile)()


@dataclass(frozen=True)
class Geometry:
    """Which sizes a pipeline can make, and how many tokens they are."""

    video: bool
    space: int  # height and width are multiples of it
    time: int  # frames are time * k + 1
    token: tuple[int, int, int]  # latent frames, pixels down and pixels across per token

    @classmethod
    def of(cls, pipe: Any) -> Geometry:
        """Read the pipeline's scale factors and its transformer's patch size."""
        video = "num_frames" in inspect.signature(pipe.__call__).parameters

        def first(*names: str, default: int) -> int:
            return next((getattr(pipe, n) for n in names if getattr(pipe, n, None)), default)

        vae = first("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor",
                    default=8)  # fmt: skip
        time = first("vae_scale_factor_temporal", "vae_temporal_compression_ratio", default=4)
        config = pipe.transformer.config
        patch = config.get("patch_size") or 2
        if isinstance(patch, int):
            # image models with patch 1 pack 2 x 2 latents before the transformer
            patch = (config.get("patch_size_t") or 1, *(2 * [patch if patch > 1 or video else 2]))
        token = (patch[0], vae * patch[1], vae * patch[2])
        # most pipelines demand multiples of 16 whatever their factors are
        return cls(video, lcm(16, *token[1:]), time if video else 1, token)

    def check(self, asked: dict[str, Any]) -> None:
        """Raise when height, width or num_frames cannot be made, naming the nearest that can."""
        for name in ("height", "width"):
            value = asked.get(name)
            if value and value % self.space:
                best = max(1, round(value / self.space)) * self.space
                raise ArgumentError(
                    f"--{name} {value} must be a multiple of {self.space}; nearest: {best}"
                )
        frames = asked.get("num_frames")
        if frames and (frames - 1) % self.time:
            best = round((frames - 1) / self.time) * self.time + 1
            raise ArgumentError(
                f"--frames {frames} must be {self.time} * k + 1 for this model; nearest: {best}"
            )

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Return the length of the attention sequence without text."""
        latents = (frames - 1) // self.time + 1
        down, across = height // self.token[1], width // self.token[2]
        return -(-latents // self.token[0]) * down * across
