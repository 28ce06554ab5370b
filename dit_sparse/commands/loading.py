"""A model ready to be looked into: what `eval` and `inspect` do before their own work."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_sparse.commands.job import NAMES, call_arguments
from dit_sparse.commands.model import (
    BUILT_IN,
    Geometry,
    Trained,
    compile_parts,
    device_of,
    go_offline_without_network,
    load,
    locate,
)
from dit_sparse.commands.request import Request, writable
from dit_sparse.commands.screen import Screen
from dit_sparse.errors import ArgumentError


@dataclass
class Loaded:
    """A dense pipeline and how to call it.

    name: which published model it is, for its shipped settings. arguments: of the call, without
    prompt and kind of output. built_in: whether it is the model that can be judged by its pixels.
    """

    pipe: Any
    name: str
    trained: Trained
    arguments: dict[str, Any]
    built_in: bool

    def call(self, prompt: str, **options: Any) -> dict[str, Any]:
        """Return the arguments of one generation."""
        return {**self.arguments, "prompt": prompt, "output_type": "np", **options}

    def facts(self, request: Request) -> dict[str, Any]:
        """Return what the outcome of a generation depends on besides prompt, seed and method."""
        return {
            "model": request.model,
            "weights": fingerprint(self.pipe),
            **{name: value for name, value in self.arguments.items() if value is not None},
            "dtype": str(self.pipe.transformer.dtype).removeprefix("torch."),
            **({"compile": True} if request.compile else {}),
        }


def checked(request: Request) -> tuple[Path | str, Trained, dict[str, Any]]:
    """Return the model's place, what it was trained for, and the arguments that were asked for.

    Raises where the request cannot work, as far as no model is needed to know.
    """
    place = locate(request.model)
    device_of(request.device)
    trained = Trained.read(place)
    asked = {NAMES[k]: v for k in NAMES if (v := getattr(request, k)) is not None}
    trained.check({**trained.default, **asked})
    return place, trained, asked


def loaded(request: Request, screen: Screen) -> Loaded:
    """Load the model of a request and check the request against it."""
    place, trained, asked = checked(request)
    if isinstance(place, str):
        go_offline_without_network()
    screen.say(f"loading {request.model}")
    pipe = load(request, place)
    geometry = Geometry.of(pipe)
    arguments = call_arguments(pipe, request, trained, asked)
    geometry.check(arguments)
    if request.compile:
        compile_parts(pipe)
    from dit_sparse.integrations.diffusers import model_name

    del arguments["prompt"], arguments["output_type"]
    name = model_name(pipe) or request.model
    return Loaded(pipe, name, trained, arguments, request.model == BUILT_IN)


def folder_for(folder: Path) -> Path:
    """Return a folder for results, which need not be there yet; raise where it cannot be made."""
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"--out {folder} is a file; name a folder")
    there = folder
    while not there.exists():
        there = there.parent
    if not writable(there):
        raise ArgumentError(f"--out {folder}: cannot write to the folder {str(there)!r}")
    return folder


def fingerprint(pipe: Any) -> str:
    """Return a short name of what a pipeline's transformers are: settings and a few weights."""
    told = hashlib.sha256()
    for part in ("transformer", "transformer_2"):
        module = getattr(pipe, part, None)
        if module is None:
            continue
        told.update(repr(sorted(module.config.items(), key=lambda pair: pair[0])).encode())
        for name, weight in module.named_parameters():
            # offloaded weights are not there to be read
            some = [] if weight.is_meta else weight.detach().flatten()[:4].float().tolist()
            told.update(f"{name} {tuple(weight.shape)} {some}".encode())
    return told.hexdigest()[:12]
