"""The diffusers seam: a backend value per self-attention layer, a context tensor, one custom op.

    transformer ─ root hook ─▶ enter(ctx, timestep, ids, sizes)      writes step, grid, CFG branch
    attention   ─ layer hook ─▶ (layer, ctx) for this thread
    dispatcher  ─ our backend ─▶ attend(q, k, v, mask, layer, ctx)   method, or dense with a reason

Both ops are opaque to `torch.compile`, and what changes between calls reaches them in tensors or is
read when the graph runs: one graph for all layers and steps. Private names of diffusers are used in
this file only, and checked once at import.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError, DitSparseError, MissingDependencyError
from dit_sparse.integrations.adapters import Adapter, find, unsupported
from dit_sparse.integrations.session import ASSUMED_STEPS, Part, Session
from dit_sparse.profile import Profile
from dit_sparse.registry import entry, get
from dit_sparse.reporting import Progress, Report
from dit_sparse.schedule import Schedule

try:
    import diffusers as host
except ImportError as error:
    raise MissingDependencyError("this needs diffusers: pip install 'diffusers>=0.35'") from error
try:
    from diffusers.hooks.hooks import BaseState, HookRegistry, ModelHook, StateManager
    from diffusers.models.attention_dispatch import (
        AttentionBackendName,
        _AttentionBackendRegistry,
        dispatch_attention_fn,
    )

    # the Enum is closed to new members; a value of its type beside the member table passes every
    # check of the dispatcher and appears in nobody's list
    BACKEND = str.__new__(AttentionBackendName, "dit_sparse")
    BACKEND._name_ = BACKEND._value_ = "dit_sparse"
    # these honour a mask
    MASKED = (AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_CUDNN)
    register_backend = _AttentionBackendRegistry.register(BACKEND)
except (ImportError, AttributeError, TypeError) as error:
    raise DitSparseError(
        f"diffusers {host.__version__} with torch {torch.__version__} has no attention dispatcher "
        f"that dit_sparse knows ({error}); 0.35 to 0.42 work"
    ) from error

HOOK = "dit_sparse"
M = TypeVar("M")
_last: weakref.WeakKeyDictionary[nn.Module, Session] = weakref.WeakKeyDictionary()


class _Now(threading.local):
    """The attention layer that this thread is in: (layer number, context), both int64 on the CPU."""

    call: tuple[Tensor, Tensor] | None = None


_now = _Now()


def enable(
    model: M,
    method: str | Path | Method | Profile = "pisa",
    *,
    schedule: Schedule | None = None,
    impl: str = "auto",
    **params: Any,
) -> M:
    """Make the self-attention of a pipeline or transformer sparse, in place; twice replaces.

    method: a registered name, a `Method`, a `Profile`, or the path of one (`*.toml`).
    schedule: instead of the method's own. impl: kernel implementation, as in `attention`.
    """
    # everything that can fail comes first: no model is left half enabled
    value, label, profile = _build(method, schedule, params)
    if impl not in ("auto", "triton", "torch", "reference"):
        raise ArgumentError(f"impl={impl!r} is not known; use auto, triton, torch or reference")
    found = []
    for name, root in _transformers(model).items():
        adapter = find(root, model)
        layers = [layer for _, layer in adapter.layers(root)]
        _check(root, adapter, layers)
        found.append((name, root, adapter, layers))
    if profile is not None and not profile.model:
        profile = Profile(type(found[0][1]).__name__, profile.method, profile.params, profile.schedule)
    disable(model)
    session = Session(model, label, value, profile, impl)
    for name, root, adapter, layers in found:
        dense = [layer.processor._attention_backend for layer in layers]
        part = Part(name, adapter, dense)
        ctx = session.add(part)
        hook = _RootHook(session, root, adapter, ctx)
        part.context = hook.host_context
        _hook_up(root, hook)
        for number, (layer, before) in enumerate(zip(layers, dense, strict=True)):
            # plain attributes, not buffers: `.to("cuda")` must leave them on the CPU
            layer._dit_sparse = (torch.tensor(number), ctx)
            _hook_up(layer, _LayerHook(before))
            layer.processor._attention_backend = BACKEND
        _forget_children(root)
        _last[root] = session
    return model


def disable(model: M) -> M:
    """Restore the original attention, bit for bit; does nothing when not enabled."""
    for root in _transformers(model).values():
        for module in root.modules():
            hook = _hook(module)
            if hook is None:
                continue
            if isinstance(hook, _LayerHook):
                if module.processor._attention_backend is BACKEND:
                    module.processor._attention_backend = hook.before
                del module._dit_sparse
            _unhook(module, hook)
        _forget_children(root)
    return model


def report(model: Any) -> Report:
    """Return what the last generation of an enabled (or just disabled) model did."""
    roots = _transformers(model)
    session, enabled = _session(roots)
    notes = []
    for name, root in roots.items():
        hooks = [m for m in root.modules() if isinstance(_hook(m), _LayerHook)]
        lost = sum(m.processor._attention_backend is not BACKEND for m in hooks)
        if lost:
            notes.append(
                f"{name}: {lost} of {len(hooks)} layers lost the sparse backend (was "
                "set_attention_backend or set_attn_processor called after enable?): sparse "
                "attention is off there; call enable again"
            )
    cells = session.cells()
    if session.clock.step >= 0 and not any(cell.sparse for cell in cells):
        notes.append("0 sparse calls: " + ("all were dense" if cells else "no call arrived"))
    share = isinstance(session.method.schedule.dense_steps, float)
    if share and session.clock.step >= 0 and not session.clock.steps:
        notes.append(f"number of steps unknown: shares of the steps are shares of {ASSUMED_STEPS}")
    layers = {part.name: len(part.dense) for part in session.parts}
    return Report(
        session.model,
        session.label,
        enabled,
        session.clock.steps,
        layers,
        cells,
        dict(session.implementations),
        tuple(notes),
    )


def progress(model: Any) -> Progress:
    """Return the step a generation is at and that step's density so far; cheap enough to poll."""
    return _session(_transformers(model))[0].progress()


def profile_of(model: Any) -> Profile | None:
    """Return the settings a model was enabled with; None when not enabled or not from a name."""
    hook = _hook(next(iter(_transformers(model).values())))
    return hook.session.profile if isinstance(hook, _RootHook) else None


def parameters(method: str | Method | Profile) -> set[str]:
    """Return the names of a method's parameters; none for a `Method` value, which is complete."""
    name = method.method if isinstance(method, Profile) else method
    return set(entry(name).parameters) if isinstance(name, str) else set()


class _RootHook(ModelHook):
    """Tells the session that a transformer call begins; stateful, to be given the cache context."""

    _is_stateful = True

    def __init__(self, session: Session, root: nn.Module, adapter: Adapter, ctx: Tensor) -> None:
        super().__init__()
        self.session, self.adapter, self.ctx = session, adapter, ctx
        self.names = tuple(inspect.signature(type(root).forward).parameters)[1:]
        self.state_manager = StateManager(BaseState)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        ids = None if self.adapter.ids is None else given.get(self.adapter.ids)
        sizes = list(self.adapter.sizes(module, given))
        torch.ops.dit_sparse.enter(self.ctx, given.get(self.adapter.timestep), ids, sizes)
        return args, kwargs

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.session.end()
        return module

    def host_context(self) -> Any:
        """Return diffusers' cache context: an object, a name (before 0.38) or None."""
        manager = self.state_manager
        return getattr(manager, "_context", getattr(manager, "_current_context", None))


class _LayerHook(ModelHook):
    """Tells the backend which layer it is called for; remembers the backend it replaces."""

    def __init__(self, before: Any) -> None:
        super().__init__()
        self.before = before

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        _now.call = module._dit_sparse
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        _now.call = None
        return output


@register_backend
def _backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    _parallel_config: Any = None,
) -> Tensor:
    """Attend [B, S, H, D] through the op; what it cannot take goes to the process-wide backend."""
    if _parallel_config is not None:
        raise DitSparseError("context parallelism was enabled after dit_sparse; it is not supported")
    call, plain = _now.call, attn_mask is None or isinstance(attn_mask, Tensor)
    if call is None or dropout_p or not plain:
        return dispatch_attention_fn(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )
    return torch.ops.dit_sparse.attend(query, key, value, attn_mask, *call, is_causal, scale)


# both ops read Python state: a CUDA graph must not swallow them
_UNSAFE: Any = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}


@torch.library.custom_op("dit_sparse::enter", mutates_args={"ctx"}, **_UNSAFE)
def _enter(
    ctx: Tensor, timestep: Tensor | None, ids: Tensor | None, sizes: list[int]
) -> None:
    Session.of(ctx).enter(ctx, timestep, ids, sizes)


@torch.library.custom_op("dit_sparse::attend", mutates_args=(), **_UNSAFE)
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    layer: Tensor,
    ctx: Tensor,
    causal: bool,
    scale: float | None,
) -> Tensor:
    session, number = Session.of(ctx), int(layer)
    odd = "an attention mask, which no method honours" if mask is not None else ""
    odd = "causal attention" if causal else odd
    out = session.attend(q, k, v, number, ctx, scale, odd)
    if out is None:
        backend = session.parts[int(ctx[1])].dense[number]
        if mask is not None and backend not in MASKED:
            backend = AttentionBackendName.NATIVE
        gqa = q.shape[2] != k.shape[2]
        out = dispatch_attention_fn(q, k, v, mask, 0.0, causal, scale, gqa, backend=backend)
    return out.contiguous()


_enter.register_fake(lambda ctx, timestep, ids, sizes: None)
_attend.register_fake(lambda q, k, v, *rest: q.new_empty(*q.shape[:-1], v.shape[-1]))


def _no_backward(ctx: Any, grad: Tensor) -> None:
    raise DitSparseError(
        "training through sparse attention is not supported: call dit_sparse.disable(model) before "
        "training, or run the model under torch.no_grad()"
    )


_attend.register_autograd(_no_backward)


def _build(
    method: str | Path | Method | Profile, schedule: Schedule | None, params: dict[str, Any]
) -> tuple[Method, str, Profile | None]:
    """Return the method, its label, and the profile that would build it again."""
    if schedule is not None and not isinstance(schedule, Schedule):
        raise ArgumentError(f"schedule={schedule!r} must be a dit_sparse.Schedule")
    if isinstance(method, Path) or (isinstance(method, str) and method.endswith(".toml")):
        method = Profile.load(method)
    if isinstance(method, Method):
        if params:
            raise ArgumentError(
                f"{next(iter(params))!r} was given with a Method value; build it with "
                "dit_sparse.get(name, ...) instead"
            )
        return method.with_schedule(schedule), repr(method), None
    if isinstance(method, str):
        value = get(method, **params)
        method = Profile("", method, params)
    elif isinstance(method, Profile):
        value = method.build(**params)
        # changed settings were not measured
        measured = {} if params or schedule else method.measured
        merged = {**method.params, **params}
        method = Profile(method.model, method.method, merged, method.schedule, measured)
    else:
        raise ArgumentError(f"method={method!r} must be a name, a Method, a Profile or its path")
    if schedule is not None:
        when = {"dense_steps": schedule.dense_steps, "dense_layers": schedule.dense_layers}
        method = Profile(method.model, method.method, method.params, when, method.measured)
    shown = ", ".join(f"{name}={value!r}" for name, value in method.params.items())
    label = f"{method.method}({shown})" if shown else method.method
    return value.with_schedule(schedule), label, method


def _transformers(model: Any) -> dict[str, nn.Module]:
    """Return the transformers of a pipeline, or the transformer itself, by component name."""
    if isinstance(model, nn.Module):
        return {"transformer": getattr(model, "_orig_mod", model)}
    parts = {}
    for name in ("transformer", "transformer_2"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            parts[name] = getattr(part, "_orig_mod", part)
    if not parts:
        raise unsupported(model, "it has no transformer; ")
    return parts


def _check(root: nn.Module, adapter: Adapter, layers: list[nn.Module]) -> None:
    """Raise when a supported class cannot be enabled as it stands."""
    name = type(root).__name__
    if not layers or not all(hasattr(getattr(m, "processor", 0), "_attention_backend") for m in layers):
        raise DitSparseError(
            f"{name} of diffusers {host.__version__}: {len(layers)} modules match "
            f"{adapter.attention!r}, not all with a dispatcher; diffusers {adapter.needs} to 0.42 work"
        )
    for layer in layers:
        config = getattr(layer.processor, "_parallel_config", None)
        parallel = getattr(config, "context_parallel_config", None)
        if parallel is not None:
            ring = getattr(parallel, "ring_degree", 1) or 1
            kind = f"ring (degree {ring})" if ring > 1 else "Ulysses"
            raise DitSparseError(f"{name} uses {kind} context parallelism, which is not supported")


def _session(roots: dict[str, nn.Module]) -> tuple[Session, bool]:
    """Return the session of some transformers and whether it is still attached."""
    for root in roots.values():
        hook = _hook(root)
        if isinstance(hook, _RootHook):
            return hook.session, True
    for root in roots.values():
        if root in _last:
            return _last[root], False
    kind = type(next(iter(roots.values()))).__name__
    raise ArgumentError(f"this {kind} was never enabled; call dit_sparse.enable(model, method) first")


def _hooks(module: nn.Module) -> HookRegistry:
    return HookRegistry.check_if_exists_or_initialize(module)


def _hook(module: nn.Module) -> ModelHook | None:
    """Return our hook on a module, without creating a registry."""
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(HOOK)


def _hook_up(module: nn.Module, hook: Any) -> None:
    """Put our hook on a module."""
    _hooks(module).register_hook(hook, HOOK)
    hook.forward = module.forward


def _unhook(module: nn.Module, hook: Any) -> None:
    """Remove our hook, keeping a wrapper that accelerate (CPU offload) put around it."""
    wrapper = module.forward
    _hooks(module).remove_hook(HOOK, recurse=False)
    if vars(module).get("_old_forward") is hook.forward:
        module._old_forward, module.forward = module.forward, wrapper
    elif getattr(module.forward, "__func__", None) is type(module).forward:
        # the registry leaves the bound method behind
        vars(module).pop("forward", None)


def _forget_children(root: nn.Module) -> None:
    """Make diffusers look for hooks below `root` again; it keeps a list since 0.38."""
    forget = getattr(_hooks(root), "invalidate_child_registries_cache", None)
    if forget is not None:
        forget()
