"""A model ready to be looked into: what `eval` and `inspect` do before their own work."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from dit_sparse.commands.job import call_arguments, checked
from dit_sparse.commands.model import (
    BUILT_IN,
    Geometry,
    Trained,
    compile_parts,
    go_offline_without_network,
    load,
)
from dit_sparse.commands.request import Request
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


def loaded(request: Request, screen: Screen, pipe: Any = None) -> Loaded:
    """Load the model of a request and check the request against it.

    pipe: the model where it is there already, dense.
    """
    place, trained, asked = checked(request)
    if isinstance(place, str):
        go_offline_without_network()
    if pipe is None:
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


def own_prompts(model: str, count: int, seed: int = 0) -> list[str]:
    """Return prompts for a model when nobody gave any.

    seed: another seed, other prompts of the built-in model; its training saw none of them.
    """
    from dit_sparse.quality.prompts import general
    from dit_sparse.world import held_out_prompts

    return held_out_prompts(count, seed) if model == BUILT_IN else general(count)


def prompts_of(order: Any, count: int | None, default: int, seed: int = 0) -> list[str]:
    """Return the prompts of --prompt or --prompts, else `own_prompts`.

    count: at most so many; None: all that were given, `default` of the own ones.
    """
    from dit_sparse.quality.prompts import read

    if order.prompt and order.prompts:
        raise ArgumentError("--prompt and --prompts both say what to show; give one of them")
    if not order.prompt and not order.prompts:
        return own_prompts(order.model, count or default, seed)
    found = list(dict.fromkeys(order.prompt)) if order.prompt else read(order.prompts)
    if not all(text.strip() for text in found):
        raise ArgumentError("--prompt is empty; say what to show")
    return found[:count]


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
