"""Learned tensors of a method, read from a safetensors file: `weights=PATH`.

A checkpoint may be small or a whole model: only tensors whose name is, or ends in, a name that
the method reads are touched. Which layer one belongs to is told by its full name: the number
after the first part called `blocks`, `layers` or `transformer_blocks`, else the first number,
else layer 0.

    blocks.7.self_attn.attn_op.local_attn.proj_l.weight  -> layer 7, proj_l.weight
    7.proj_l.weight                                      -> layer 7, proj_l.weight

Layers are numbered as in `Context.layer`: the self-attention modules of one transformer from 0.
A model with two lists of blocks must write those numbers itself (`57.proj_l.weight`).
`{part}` in the path stands for the transformer's name in a pipeline: `transformer` or
`transformer_2`, which have weights of their own.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError

LISTS = ("blocks", "layers", "transformer_blocks")
LARGEST = 1 << 24  # values of one tensor; a learned map of a layer has far fewer

# layer -> name the method knows -> full name in the file
Found = dict[int, dict[str, str]]


def layer_weights(
    method: Method, layer: int, device: torch.device, part: str = "transformer"
) -> dict[str, Tensor]:
    """Return a layer's learned tensors by name, float32 on `device`; {} without weights.

    Read and moved once per file (path and time of change), layer and device. A compiler breaks
    its graph here; a diffusers model is called through an op and keeps one graph.
    """
    if not method.weights:
        return {}
    return _current(method.weights, part, method.tensors, layer, str(device))


@torch.compiler.disable(reason="learned weights are read from a file")
def _current(
    weights: str, part: str, names: tuple[str, ...], layer: int, device: str
) -> dict[str, Tensor]:
    """Return a layer's tensors from the file as it is now."""
    path, changed = _file(weights, part)
    return _layer(path, changed, names, layer, device)


def check_weights(method: Method, layers: dict[str, int]) -> None:
    """Raise unless the file has tensors for every layer that is ever sparse.

    layers: number of self-attention layers of each transformer, by its name.
    """
    if not method.weights:
        return
    if len(layers) > 1 and "{part}" not in method.weights:
        raise ArgumentError(
            f"weights={method.weights!r} would serve {' and '.join(layers)} alike; write {{part}} "
            "where the names of their files differ"
        )
    for part, count in layers.items():
        path, changed = _file(method.weights, part)
        found = _scan(path, changed, method.tensors)
        for layer in range(count):
            # a layer that is dense even after the longest start needs none
            if method.schedule.at(layer, 1 << 30, 1 << 30) == "sparse":
                _need(path, found, layer)


def _file(weights: str, part: str) -> tuple[str, int]:
    """Return the path of a transformer's file and its time of change."""
    path = os.path.expanduser(weights.replace("{part}", part))
    if not os.path.isfile(path):
        raise ArgumentError(f"weights={path!r} is no file; give the path of a safetensors file")
    return path, os.stat(path).st_mtime_ns


def _need(path: str, found: Found, layer: int) -> dict[str, str]:
    """Return the full names of a layer's tensors."""
    if layer not in found:
        have = ", ".join(map(str, sorted(found)))
        raise ArgumentError(f"weights={path!r} has nothing for layer {layer}; it has layers {have}")
    return found[layer]


def _open(path: str) -> Any:
    """Open a file for lazy reading; anything but safetensors raises."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        why = " ".join(str(error).split())
        raise ArgumentError(
            f"weights={path!r} is no valid safetensors file ({why}); other formats are not read: "
            "convert with safetensors.torch.save_file"
        ) from None


@lru_cache(maxsize=16)
def _scan(path: str, changed: int, names: tuple[str, ...]) -> Found:
    """Return what a file holds for a method, from its header alone."""
    found: Found = {}
    with _open(path) as file:
        for key in file.keys():  # noqa: SIM118 - an open file is no dict
            name = next((n for n in names if key == n or key.endswith("." + n)), None)
            if name is None:
                continue
            row = found.setdefault(_number(key), {})
            if name in row:
                raise ArgumentError(
                    f"weights={path!r}: {row[name]!r} and {key!r} are both {name!r} of layer "
                    f"{_number(key)}; keep one"
                )
            row[name] = key
    if not found:
        raise ArgumentError(f"weights={path!r} holds no tensor named {' or '.join(names)}")
    return found


def _number(key: str) -> int:
    """Return the layer a tensor belongs to, read from its full name."""
    parts = key.split(".")
    numbers = [int(p) if re.fullmatch("[0-9]{1,6}", p) else None for p in parts]
    for part, number in zip(parts, numbers[1:], strict=False):
        if part in LISTS and number is not None:
            return number
    return next((n for n in numbers if n is not None), 0)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _layer(
    path: str, changed: int, names: tuple[str, ...], layer: int, device: str
) -> dict[str, Tensor]:
    """Load one layer's tensors onto a device; outside inference mode, for gradients may follow."""
    found = {}
    wanted = _need(path, _scan(path, changed, names), layer)
    with _open(path) as file:
        for name, key in wanted.items():
            shape = file.get_slice(key).get_shape()
            if torch.Size(shape).numel() > LARGEST:
                raise ArgumentError(
                    f"weights={path!r}: {key!r} has shape {shape}; a learned tensor of one layer "
                    f"has at most {LARGEST} values"
                )
            tensor = file.get_tensor(key)
            if not tensor.is_floating_point():
                raise ArgumentError(f"weights={path!r}: {key!r} is {tensor.dtype}, not floating")
            found[name] = tensor.to(device, torch.float32)
    return found
