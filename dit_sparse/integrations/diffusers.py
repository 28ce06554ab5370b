"""Enable, disable and report for diffusers pipelines and transformers."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.integrations import seam
from dit_sparse.integrations.adapters import COMPONENTS, find, unsupported
from dit_sparse.integrations.build import build
from dit_sparse.integrations.guard import Guard
from dit_sparse.integrations.published import published
from dit_sparse.integrations.session import ASSUMED_STEPS, Session
from dit_sparse.parameters import check_impl
from dit_sparse.profile import ALL_ROUND, Profile, unnamed
from dit_sparse.profile import find as shipped_for
from dit_sparse.registry import entry
from dit_sparse.reporting import Progress, Report
from dit_sparse.schedule import Schedule
from dit_sparse.weights import check_weights

M = TypeVar("M")
_last: weakref.WeakKeyDictionary[nn.Module, Session] = weakref.WeakKeyDictionary()


def enable(
    model: M,
    method: str | Path | Method | Profile | None = None,
    *,
    schedule: Schedule | None = None,
    impl: str = "auto",
    quant: str = "none",
    guard: float | None = None,
    **params: Any,
) -> M:
    """Make the self-attention of a pipeline or transformer sparse, in place; twice replaces.

    method: a registered name, a `Method`, a `Profile`, or the path of one (`*.toml`). A name takes
    the settings that its paper gives for this model, where a profile is shipped (`report` says so);
    `params` take precedence. Without a method it is the profile found for this model, where one is
    shipped, else "pisa"; the first call tells which, and what it can gain. schedule: instead of the
    method's own. impl, quant: kernel and number format, as in `attention`; quant="none" leaves the
    format that a value or a profile brings. guard: the largest relative error of a layer, such as
    0.05, estimated from some query rows that are computed exactly as well (at most 2 % of the
    time): a layer above it is dense for the rest of a generation, and `report` tells. Not for a
    model trained with its method, which has no use for dense attention. Settings that do not fit
    the model raise here and leave it as it was; those that do not fit the size or the steps of a
    generation raise at its first attention call.
    """
    # everything that can fail comes first: no model is left half enabled
    name = model_name(model)
    nobody = method is None
    if method is None:
        # settings and number formats are of single methods
        method = ALL_ROUND if params or quant != "none" else unnamed(name)
    if name and isinstance(method, str) and not method.endswith(".toml"):
        method = shipped_for(name, method) or method
    value, label, profile = build(method, schedule, quant, params)
    if value.schedule.phase not in ("", "prefill"):
        which = "the method" if isinstance(method, Method) else f"method={label!r}"
        raise ArgumentError(
            f"{which} is for the decoding of language models: see "
            "dit_sparse.integrations.transformers and `dit-sparse lm`"
        )
    check_impl(impl)
    watched = None if guard is None else Guard(guard, value.schedule)
    found = [(name, root, find(root, model)) for name, root in transformers_of(model).items()]
    counts = {}
    for name, root, adapter in found:
        seam.check(root, adapter)
        if watched is not None and seam.is_shared(root, adapter):
            raise ArgumentError(
                f"guard={guard:g} goes without context parallelism: a process sees its heads alone"
            )
        layers = adapter.layers(root)
        counts[name] = len(layers)
        value.check(len(layers), adapter.heads(layers), causal=False)
    check_weights(value, counts)
    if profile is not None and not profile.model:
        profile = replace(profile, model=type(found[0][1]).__name__)
    disable(model)
    session = Session(model, label, value, profile, impl, watched)
    if nobody:
        session.unnamed = f"this is {_named(profile) or label}"
    for name, root, adapter in found:
        seam.attach(root, name, adapter, session)
        _last[root] = session
    return model


def model_name(model: Any) -> str | None:
    """Return which published model a pipeline or transformer is, by its configuration, or None."""
    return published(transformers_of(model))


def disable(model: M) -> M:
    """Restore the original attention, bit for bit; does nothing when not enabled."""
    for root in transformers_of(model).values():
        seam.detach(root)
    return model


def report(model: Any) -> Report:
    """Return what the last generation of an enabled (or just disabled) model did."""
    roots = transformers_of(model)
    session, enabled = _session(roots)
    notes = _origin(session.profile, next(iter(roots.values())), published(roots))
    for name, root in roots.items():
        lost, layers = seam.lost(root)
        if lost:
            notes.append(
                f"{name}: {lost} of {layers} layers lost the sparse backend (was "
                "set_attention_backend or set_attn_processor called after enable?): sparse "
                "attention is off there; call enable again"
            )
    cells = session.cells()
    if session.clock.step >= 0 and not any(cell.sparse for cell in cells):
        notes.append("0 sparse calls: " + ("all were dense" if cells else "no call arrived"))
    share = isinstance(session.method.schedule.dense_steps, float)
    if share and session.clock.step >= 0 and not session.clock.steps:
        notes.append(f"number of steps unknown: shares of the steps are shares of {ASSUMED_STEPS}")
    counts = {part.name: len(part.dense) for part in session.parts}
    guarded = session.guarded()
    notes += guarded.notes() if guarded else []
    return Report(
        session.model,
        session.label,
        enabled,
        session.clock.steps,
        counts,
        cells,
        dict(session.implementations),
        tuple(notes),
        guarded,
        max(part.share() for part in session.parts) or None,
    )


def progress(model: Any) -> Progress:
    """Return the step a generation is at and that step's density so far; cheap enough to poll."""
    session, enabled = _session(transformers_of(model))
    if not enabled:
        raise ArgumentError(f"this {type(model).__name__} is not enabled any more")
    return session.progress()


def profile_of(model: Any) -> Profile | None:
    """Return the settings a model was enabled with; None when not enabled or not from a name."""
    hook = seam.hook_of(next(iter(transformers_of(model).values())))
    return None if hook is None else hook.session.profile


def device_name(root: nn.Module) -> str:
    """Return the name of a transformer's device, as profiles have it: of the GPU, or "CPU"."""
    weight = next(iter(root.parameters()), None)
    on_gpu = weight is not None and weight.is_cuda
    return torch.cuda.get_device_name(weight.device) if weight is not None and on_gpu else "CPU"


def parameters(method: str | Method | Profile | None) -> set[str]:
    """Return the names of a method's parameters; none for a `Method` value, which is complete."""
    method = ALL_ROUND if method is None else method
    name = method.method if isinstance(method, Profile) else method
    return set(entry(name).parameters) if isinstance(name, str) else set()


def _origin(profile: Profile | None, root: nn.Module, model: str | None) -> list[str]:
    """Return notes that name the shipped profile the settings came from, and where it was made.

    model: the name of the published model that this is.
    """
    if profile is None:
        return []
    draft = "; nobody has measured them" if profile.is_draft else ""
    name = _named(profile)
    notes = [f"settings of {name}{draft}" if name else "", profile.elsewhere(device_name(root))]
    if model and profile.model not in (model, type(root).__name__):
        notes.append(f"settings made for {profile.model}; this is {model}")
    return list(filter(None, notes))


def _named(profile: Profile | None) -> str:
    """Return the name of a shipped profile, "" for another."""
    if profile is None or shipped_for(profile.model, profile.method) is None:
        return ""
    return f"profile {profile.model}--{profile.method}"


def transformers_of(model: Any) -> dict[str, nn.Module]:
    """Return the transformers of a pipeline, or the transformer itself, by component name."""
    if isinstance(model, nn.Module):
        return {"transformer": getattr(model, "_orig_mod", model)}
    parts = {}
    for name in COMPONENTS:
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            parts[name] = getattr(part, "_orig_mod", part)
    if not parts:
        raise unsupported(model, "it has no transformer; ")
    return parts


def layers_of(model: Any) -> int:
    """Return the number of self-attention layers of a pipeline's deepest transformer."""
    return max(len(find(root, model).layers(root)) for root in transformers_of(model).values())


def _session(roots: dict[str, nn.Module]) -> tuple[Session, bool]:
    """Return the session of some transformers and whether it is still attached."""
    for root in roots.values():
        hook = seam.hook_of(root)
        if hook is not None:
            return hook.session, True
    for root in roots.values():
        if root in _last:
            return _last[root], False
    kind = type(next(iter(roots.values()))).__name__
    raise ArgumentError(f"{kind} was never enabled; call dit_sparse.enable(model, method) first")
