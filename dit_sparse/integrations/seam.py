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
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dit_sparse.errors import DitSparseError, MissingDependencyError
from dit_sparse.integrations.adapters import Adapter
from dit_sparse.integrations.session import Part, Session

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
# what `from_pretrained` of this version calls the dtype; the old name warns where the new one works
DTYPE = "dtype" if hasattr(host.utils.deprecation_utils, "_resolve_dtype") else "torch_dtype"


class _Now(threading.local):
    """The attention layer this thread is in: (layer number, context), both int64 on the CPU."""

    call: tuple[Tensor, Tensor] | None = None


_now = _Now()


def check(root: nn.Module, adapter: Adapter) -> None:
    """Raise when a supported class cannot be enabled as it stands."""
    name, layers = type(root).__name__, adapter.layers(root)
    seams = [hasattr(getattr(m, "processor", None), "_attention_backend") for m in layers]
    if not layers or not all(seams):
        raise DitSparseError(
            f"{name} of diffusers {host.__version__}: {sum(seams)} of {len(layers)} modules "
            f"named like {adapter.attention!r} use the dispatcher; {adapter.needs} to 0.42 work"
        )
    for layer in layers:
        config = getattr(layer.processor, "_parallel_config", None)
        parallel = getattr(config, "context_parallel_config", None)
        if parallel is not None:
            ring = getattr(parallel, "ring_degree", 1) or 1
            kind = f"ring (degree {ring})" if ring > 1 else "Ulysses"
            raise DitSparseError(f"{name} uses {kind} context parallelism, which is not supported")


def attach(root: nn.Module, name: str, adapter: Adapter, session: Session) -> None:
    """Hook a transformer up to a session."""
    layers = adapter.layers(root)
    part = Part(name, adapter, [layer.processor._attention_backend for layer in layers])
    ctx = session.add(part)
    hook = RootHook(session, root, adapter, ctx)
    part.context = hook.host_context
    HookRegistry.check_if_exists_or_initialize(root).register_hook(hook, HOOK)
    hook.forward = root.forward
    for number, layer in enumerate(layers):
        _Layer.enable(layer, number, ctx)


def detach(root: nn.Module) -> None:
    """Undo `attach`; does nothing when not attached."""
    layers: list[Any] = [m for m in root.modules() if hasattr(m, "_dit_sparse_layer")]
    for layer in layers:
        layer._dit_sparse_layer.disable(layer)
    _unhook(root)


def lost(root: nn.Module) -> tuple[int, int]:
    """Return how many layers no longer have our backend value, and how many should."""
    layers: list[Any] = [m for m in root.modules() if hasattr(m, "_dit_sparse_layer")]
    return sum(m.processor._attention_backend is not BACKEND for m in layers), len(layers)


class RootHook(ModelHook):
    """Tells the session that a transformer call begins; stateful, to be given the cache context."""

    _is_stateful = True

    def __init__(self, session: Session, root: nn.Module, adapter: Adapter, ctx: Tensor) -> None:
        super().__init__()
        self.session, self.adapter, self.ctx = session, adapter, ctx
        self.forward: Any = None
        self.names = tuple(inspect.signature(type(root).forward).parameters)[1:]
        self.state_manager = StateManager(cast(Any, BaseState))

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


@dataclass(frozen=True)
class _Layer:
    """What `enable` did to an attention module: the backend it replaced, the hooks it added."""

    before: Any
    hooks: tuple[Any, ...]

    @classmethod
    def enable(cls, module: Any, number: int, ctx: Tensor) -> None:
        # plain attributes, not buffers: `.to("cuda")` must leave them on the CPU
        module._dit_sparse = (torch.tensor(number), ctx)
        # hooks of torch, not of diffusers: a wrapped `forward` is an object of its own in each
        # layer, and `compile_repeated_blocks` would compile every one of them
        hooks = (module.register_forward_pre_hook(_inside), module.register_forward_hook(_outside))
        module._dit_sparse_layer = cls(module.processor._attention_backend, hooks)
        module.processor._attention_backend = BACKEND

    def disable(self, module: Any) -> None:
        if module.processor._attention_backend is BACKEND:
            module.processor._attention_backend = self.before
        for hook in self.hooks:
            hook.remove()
        del module._dit_sparse, module._dit_sparse_layer


def _inside(module: Any, args: Any) -> None:
    """Tell the backend which layer it is called for."""
    _now.call = module._dit_sparse


def _outside(module: nn.Module, args: Any, output: Any) -> None:
    """Forget the layer: a backend value shared by other modules must not use it."""
    _now.call = None


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
        raise DitSparseError("context parallelism is not supported, but was enabled afterwards")
    call, plain = _now.call, attn_mask is None or isinstance(attn_mask, Tensor)
    if call is None or dropout_p or not plain:
        return dispatch_attention_fn(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )
    return torch.ops.dit_sparse.attend(query, key, value, attn_mask, *call, is_causal, scale)


# both ops read Python state: a CUDA graph must not swallow them
_UNSAFE: Any = {}
if hasattr(torch.Tag, "cudagraph_unsafe"):
    _UNSAFE["tags"] = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("dit_sparse::enter", mutates_args={"ctx"}, **_UNSAFE)
def _enter(ctx: Tensor, timestep: Tensor | None, ids: Tensor | None, sizes: list[int]) -> None:
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


def hook_of(root: nn.Module) -> RootHook | None:
    """Return our hook on a transformer, without creating a registry."""
    registry = getattr(root, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(HOOK)


def _unhook(root: Any) -> None:
    """Remove our hook, keeping a wrapper that accelerate (CPU offload) put around it."""
    hook, wrapper = hook_of(root), root.forward
    if hook is None:
        return
    root._diffusers_hook.remove_hook(HOOK, recurse=False)
    if vars(root).get("_old_forward") is hook.forward:
        root._old_forward, root.forward = root.forward, wrapper
    elif getattr(root.forward, "__func__", None) is type(root).forward:
        # the registry leaves the bound method behind
        vars(root).pop("forward", None)
