"""Enable, disable and report for causal language models of transformers.

    from dit_sparse.integrations import transformers as text
    text.enable(model, "xattention")
    model.generate(**inputs)
    print(text.report(model))
    text.disable(model)

Every causal model that goes through the attention interface: Llama, Qwen2, Qwen3, Mistral, Gemma,
Phi, GPT-OSS and their kin. Sparse are full causal attention layers, with left or right padding, in
one piece or in chunks, with dynamic and static caches. Dense, with the reason in `report`: layers
with a sliding window, sinks or a softcap; packed sequences and other masks; paged caches; dropout
and gradients; and the phase that the method is not for. Dense calls inside a compiled model are
plain attention there and are not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dit_sparse.core import QKV, Context, Heads, Method
from dit_sparse.errors import ArgumentError, DitSparseError, UnsupportedModelError
from dit_sparse.integrations.build import build
from dit_sparse.integrations.transformers_seam import (
    NAME,
    WATCHED,
    link,
    linked,
    unlink,
    watch,
)
from dit_sparse.integrations.transformers_session import TextSession
from dit_sparse.parameters import check_impl
from dit_sparse.profile import Profile
from dit_sparse.reporting import Report
from dit_sparse.schedule import Schedule
from dit_sparse.weights import check_weights, layer_weights

M = TypeVar("M", bound=nn.Module)
# tokens of the trial call that shows whether a method can be causal
TRIAL = 32


@dataclass(frozen=True)
class _Kept:
    """The session of a model, and the attention implementation to return to."""

    session: TextSession
    before: Any


_last: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


def enable(
    model: M,
    method: str | Path | Method | Profile,
    *,
    schedule: Schedule | None = None,
    impl: str = "auto",
    **params: Any,
) -> M:
    """Make the attention of a causal language model sparse, in place; twice replaces.

    model: a transformers model. method: a registered name, a `Method`, a `Profile` or the path of
    one. schedule: instead of the method's own, whose phase it keeps unless it names one. Returns
    the same object; raises `UnsupportedModelError` when its attention cannot be replaced and
    `ArgumentError` when the method cannot be causal.
    """
    root, layers = _layers(model)
    value, label, _ = build(method, schedule, "none", params)
    check_impl(impl)
    config = root.config.get_text_config()
    value.check(len(layers), config.num_attention_heads, causal=True)
    check_weights(value, {"model": len(layers)})
    _try(value, config, label, len(layers))
    if value.schedule.first_sparse_step(2) > 1:
        given = value.schedule.dense_steps
        raise ArgumentError(f"dense_steps={given!r} counts steps of denoising; use dense_layers")
    disable(model)
    before, restore = _use(root, NAME)
    session = TextSession(type(root).__name__, label, value, len(layers), impl, _own_heads(root))
    for number, layer in enumerate(layers):
        link(layer, session, number, before)
    _last[root] = _Kept(session, restore)
    return model


def disable(model: M) -> M:
    """Restore the attention the model had; does nothing when not enabled."""
    root = _root(model)
    layers = [m for m in root.modules() if linked(m) is not None]
    for layer in layers:
        unlink(layer)
    if layers and root in _last:
        root.set_attn_implementation(_last[root].before)
    return model


def report(model: Any) -> Report:
    """Return what the last generation of an enabled (or just disabled) model did."""
    root = _root(model)
    layers = [m for m in root.modules() if linked(m) is not None]
    if root not in _last:
        raise ArgumentError(
            f"{type(root).__name__} was never enabled; call "
            "dit_sparse.integrations.transformers.enable(model, method) first"
        )
    session, notes = _last[root].session, []
    if layers and root.config.get_text_config()._attn_implementation != NAME:
        notes.append(
            "set_attn_implementation was called after enable: sparse attention is off; call "
            "enable again"
        )
    cells = session.cells()
    if cells and not any(cell.sparse for cell in cells):
        notes.append("0 sparse calls: all were dense")
    return Report(
        session.model,
        session.label,
        bool(layers),
        session.passes + 1,
        {"model": session.layers},
        cells,
        dict(session.implementations),
        tuple(notes),
    )


def tensors(model: nn.Module, tokens: Tensor, layers: Iterable[int] = ()) -> dict[int, QKV]:
    """Return q [B, H, S, D] and k, v [B, Hkv, S, D] of attention layers, from one dense pass.

    model: dense, of transformers. tokens: [B, S] texts without padding. layers: their numbers,
    none for all, which are held at once. What settings are searched from: see docs/text.md.
    """
    root, modules = _layers(model)
    if any(linked(module) is not None for module in modules):
        raise ArgumentError(
            f"{type(root).__name__} is enabled, its later layers follow sparse ones; call "
            "dit_sparse.integrations.transformers.disable(model) first"
        )
    wanted, found = set(layers) or set(range(len(modules))), {}
    if not wanted <= set(range(len(modules))):
        raise ArgumentError(
            f"layers={sorted(wanted)} must be numbers below {len(modules)}, the model's layers"
        )
    _, restore = _use(root, WATCHED)
    try:
        for number, module in enumerate(modules):
            keep = partial(found.__setitem__, number) if number in wanted else lambda x: None
            watch(module, keep)
        with torch.no_grad():
            # without the head: nobody asks for words
            root.base_model(tokens, use_cache=False)
    finally:
        for module in modules:
            watch(module, None)
        root.set_attn_implementation(restore)
    return found


def _use(root: Any, name: str) -> tuple[str, Any]:
    """Set a model's attention implementation; return the one it had, and how to set that again."""
    config = root.config.get_text_config()
    before = config._attn_implementation
    parts = [n for n in root.config.sub_configs if getattr(root.config, n, None) is config]
    root.set_attn_implementation({parts[0]: name} if parts else name)
    if config._attn_implementation != name:
        raise _unsupported(root, "it does not go through transformers' attention interface")
    return before, {parts[0]: before} if parts else before


def _root(model: Any) -> Any:
    """Return the model itself, without a compiler's wrapper; raise unless it is one."""
    root = getattr(model, "_orig_mod", model)
    if not isinstance(root, nn.Module) or not hasattr(root, "set_attn_implementation"):
        raise _unsupported(root, "it is no model of transformers")
    return root


def _layers(model: Any) -> tuple[Any, list[nn.Module]]:
    """Return the model and its causal self-attention modules, in order."""
    root = _root(model)
    if not getattr(root, "_supports_attention_backend", False):
        raise _unsupported(root, "it does not go through transformers' attention interface")
    if getattr(root.config, "is_encoder_decoder", False):
        raise _unsupported(root, "it has an encoder")
    layers: list[Any] = [
        m for m in root.modules() if hasattr(m, "layer_idx") and getattr(m, "is_causal", False)
    ]
    if not layers:
        raise _unsupported(root, "it has no causal self-attention")
    return root, sorted(layers, key=lambda m: m.layer_idx)


def _own_heads(root: Any) -> Heads | None:
    """Return the heads of this process under tensor parallelism, None without."""
    parts = getattr(root, "tp_size", None) or 1
    if parts == 1:
        return None
    total = root.config.get_text_config().num_attention_heads
    return Heads(root._device_mesh["tp"].get_local_rank() * total // parts, total)


def _unsupported(model: Any, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__} is not supported: {why}; supported are causal language models of "
        "transformers 5 such as LlamaForCausalLM, Qwen3ForCausalLM, MistralForCausalLM"
    )


def _try(method: Method, config: Any, label: str, layers: int) -> None:
    """Raise what a causal call would raise: a method for videos may need a grid or future keys."""
    layer = next((n for n in range(layers) if method.schedule.at(n, 1, 2) == "sparse"), None)
    if layer is None:
        return
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    q, *kv = (torch.zeros(1, n, TRIAL, dim) for n in (heads, groups, groups))
    weights = layer_weights(method, layer, q.device, "model")
    try:
        method(QKV(q, *kv), Context(layer=layer, causal=True, impl="torch", weights=weights))
    except DitSparseError as error:
        raise ArgumentError(f"method={label!r} cannot run on a language model: {error}") from error
