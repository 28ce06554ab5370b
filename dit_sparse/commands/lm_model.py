"""The language model behind --model: the built-in `needle`, a folder, or a hub id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_sparse.commands.model import BUILT_IN as VIDEOS
from dit_sparse.commands.model import BUILT_IN_TEXT as BUILT_IN
from dit_sparse.commands.model import device_of, found, go_offline_without_network
from dit_sparse.commands.request import DTYPES, Request
from dit_sparse.errors import ArgumentError


@dataclass
class LanguageModel:
    """A dense causal model and its tokenizer; name: for shipped settings; built_in: `needle`."""

    model: Any
    tokenizer: Any
    name: str
    built_in: bool

    @property
    def longest(self) -> int:
        """Return the most tokens it was made for."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 40)

    @property
    def stop(self) -> tuple[int, ...]:
        """Return the tokens that end an answer."""
        found = getattr(self.model.generation_config, "eos_token_id", None)
        return () if found is None else tuple(found) if isinstance(found, list) else (found,)

    def facts(self) -> dict[str, Any]:
        """Return what an outcome depends on besides texts and method."""
        told = hashlib.sha256()
        for name, weight in self.model.named_parameters():
            some = weight.detach().flatten()[:4].float().tolist()
            told.update(f"{name} {tuple(weight.shape)} {some}".encode())
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"model": self.name, "weights": told.hexdigest()[:12], "dtype": dtype}


def folder() -> Path:
    """Return the folder of the built-in model."""
    return Path(__file__).resolve().parent.parent / "models" / BUILT_IN


def locate(name: str) -> Path | str:
    """Return the model folder that --model names, or the hub id when it names none."""
    if name == BUILT_IN:
        if not (folder() / "model.safetensors").is_file():
            raise ArgumentError(f"--model {name}: its weights are not installed in {folder()}")
        return folder()
    if name == VIDEOS:
        raise ArgumentError(f"--model {name} makes videos; use it with `generate`")

    def wrong(folder: Path) -> str:
        if (folder / "model_index.json").is_file():
            return "is a diffusers pipeline; use it with `generate`"
        known = (folder / "config.json").is_file()
        return "" if known else "is no model of transformers: no config.json"

    return found(name, BUILT_IN, "language model", wrong)


def load(request: Request) -> LanguageModel:
    """Load the model of a request, dense, on its device and in its number format."""
    import torch

    place = locate(request.model)
    device, dtype = device_of(request.device), request.dtype
    if isinstance(place, str):
        go_offline_without_network()
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        number_format = getattr(torch, DTYPES[dtype])
        model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=number_format)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        what = "cannot be loaded as a causal language model"
        if isinstance(place, str):
            what = "is no folder here and cannot be fetched from the Hugging Face hub"
        raise ArgumentError(f"--model {request.model} {what}: {error}") from error
    model = model.eval().to(device)
    return LanguageModel(model, tokenizer, request.model, request.model == BUILT_IN)
