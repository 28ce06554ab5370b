"""The diffusers seam: a backend value per self-attention layer, a context tensor, one custom op.

    transformer ─ root hook ─▶ enter(ctx, timestep, ids, sizes)      writes step, grid, CFG branch
    attention   ─ layer hook ─▶ (layer, ctx) for this thread
    dispatcher  ─ our backend ─▶ attend(q, k, v, mask, layer, ctx)   method, or dense with a reason

Where a processor calls PyTorch's attention itself, `capture.py` leads it to the same op.

Both ops are opaque to `torch.compile`, and what changes between calls reaches them in tensors or is
read when the graph runs: one graph for all layers and steps. Private names of diffusers are used in
this file only, and checked once at import.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from dit_sparse.errors import DitSparseError, MissingDependencyError
from dit_sparse.integrations import gain
from dit_sparse.integrations.adapters import Adapter
from dit_sparse.integrations.capture import ATTENTION, Here, capture, is_captured, now, release
from dit_sparse.integrations.parallel import Ulysses
from dit_sparse.integrations.sequence import Sequence, apart
from dit_sparse.integrations.session import Part, Session

try:
    import diffusers as host
except ImportError as error:
    raise MissingDependencyError("this needs diffusers: pip install 'diffusers>=0.35'") from error
try:
    from diffusers.hooks._helpers import AttentionProcessorRegistry
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
    # before 0.36 there was no context parallelism to support
    _register: Any = _AttentionBackendRegistry.register
    _shares = "supports_context_parallel" in inspect.signature(_register).parameters
    register_backend = _register(
        BACKEND, **({"supports_context_parallel": True} if _shares else {})
    )
except (ImportError, AttributeError, TypeError) as error:
    raise DitSparseError(
        f"diffusers {host.__version__} with torch {torch.__version__} has no attention dispatcher "
        f"that dit_sparse knows ({error}); 0.35 to 0.42 work"
    ) from error

HOOK = "dit_sparse"
# what `from_pretrained` of this version calls the dtype; the old name warns where the new one works
DTYPE = "dtype" if hasattr(host.utils.deprecation_utils, "_resolve_dtype") else "torch_dtype"


def check(root: nn.Module, adapter: Adapter) -> None:
    """Raise when a supported class cannot be enabled as it stands."""
    name, layers = type(root).__name__, adapter.layers(root)
    if not layers:
        raise DitSparseError(
            f"{name} of diffusers {host.__version__} has no module named like "
            f"{adapter.attention!r}; diffusers {adapter.needs} to 0.42 work"
        )
    parallel, heads = _context_parallel(layers), adapter.heads(layers)
    if parallel is None:
        return
    if (parallel.ring_degree or 1) > 1:
        raise DitSparseError(
            f"{name} uses ring attention (ring_degree={parallel.ring_degree}), which no sparse "
            "method supports; use ContextParallelConfig(ulysses_degree=...)"
        )
    ranks, anything = parallel.ulysses_degree, getattr(parallel, "ulysses_anything", False)
    if heads and (heads < ranks or (heads % ranks and not anything)):
        raise DitSparseError(
            f"{name} has {heads} heads, which {ranks} processes cannot share evenly; use a degree "
            f"that divides {heads}" + (", or ulysses_anything=True" if heads > ranks else "")
        )


def attach(root: nn.Module, name: str, adapter: Adapter, session: Session) -> None:
    """Hook a transformer up to a session."""
    layers = adapter.layers(root)
    dense = [_dense_backend(layer) for layer in layers]
    part = Part(name, adapter, dense, ulysses=_ulysses(layers), shard=_shard(root))
    part.weights = gain.weights(root)
    ctx = session.add(part)
    hook = RootHook(session, root, adapter, ctx)
    part.context = partial(_host_context, weakref.ref(hook))
    part.lost = partial(_lost, weakref.ref(root))
    HookRegistry.check_if_exists_or_initialize(root).register_hook(hook, HOOK)
    hook.forward = root.forward
    for number, layer in enumerate(layers):
        _Layer.enable(layer, number, ctx, adapter, part.ulysses is not None)


def detach(root: nn.Module) -> None:
    """Undo `attach`; does nothing when not attached."""
    for layer in _layers(root):
        layer._dit_sparse_layer.disable(layer)
    _unhook(root)


def lost(root: nn.Module) -> tuple[int, int]:
    """Return how many layers do not lead to us any more, and how many should."""
    layers = _layers(root)
    return sum(not _is_ours(layer) for layer in layers), len(layers)


def _host_context(hook: Callable[[], RootHook | None]) -> Any:
    """Return the host's context as told by a hook that the session must not keep alive."""
    found = hook()
    return None if found is None else found.host_context()


def _lost(root: Callable[[], nn.Module | None]) -> tuple[int, int]:
    """Return `lost` of a transformer that the session must not keep alive."""
    found = root()
    return (0, 0) if found is None else lost(found)


def _layers(root: nn.Module) -> list[Any]:
    """Return the attention modules of a transformer that `attach` changed."""
    return [m for m in root.modules() if hasattr(m, "_dit_sparse_layer")]


def _dense_backend(layer: Any) -> Any:
    """Return the backend of a layer: its own value, PyTorch's where it does not ask for one."""
    native = AttentionBackendName.NATIVE
    return getattr(getattr(layer, "processor", None), "_attention_backend", native)


def _is_ours(layer: Any) -> bool:
    """Return whether a layer leads to us: by its backend value, or captured."""
    owner = getattr(layer, "processor", layer)
    return getattr(owner, "_attention_backend", None) is BACKEND or is_captured(owner)


def _context_parallel(layers: list[Any]) -> Any:
    """Return the configuration of context parallelism that the host gave these layers, or None."""
    for layer in layers:
        config = getattr(getattr(layer, "processor", None), "_parallel_config", None)
        parallel = getattr(config, "context_parallel_config", None)
        if parallel is not None:
            return parallel
    return None


def _ulysses(layers: list[Any]) -> Ulysses | None:
    """Return the group of processes that share the sequences of these layers, or None."""
    parallel = _context_parallel(layers)
    if parallel is None:
        return None
    mesh = parallel._ulysses_mesh
    return Ulysses(mesh.get_local_rank(), mesh.size(), mesh.get_group())


def is_shared(root: nn.Module, adapter: Adapter) -> bool:
    """Return whether several processes share the sequences of a transformer."""
    return _context_parallel(adapter.layers(root)) is not None


def _shard(root: Any) -> tuple[int, int]:
    """Return (rank, ranks) of tensor parallelism, where each process has heads of its own."""
    config = getattr(root, "_parallel_config", None)
    mesh = getattr(getattr(config, "tensor_parallel_config", None), "_mesh", None)
    return (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())


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
        # an exception in a layer leaves it there
        now.call = None
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        ids = self.adapter.positions(given)
        sizes = list(self.adapter.sizes(module, given))
        torch.ops.dit_sparse.enter(self.ctx, given.get(self.adapter.timestep), ids, sizes)
        if self.adapter.unset:
            return (), {**given, **dict.fromkeys(self.adapter.unset)}
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
    """What `enable` did to an attention module: what it replaced, the hooks it added.

    processor: the one it has, None when there is none. backend: its value.
    """

    processor: Any
    backend: Any
    hooks: tuple[Any, ...]

    @classmethod
    def enable(
        cls,
        module: Any,
        number: int,
        ctx: Tensor,
        adapter: Adapter,
        parallel: bool,
    ) -> None:
        # plain attributes, not buffers: `.to("cuda")` must leave them on the CPU
        module._dit_sparse = Here(torch.tensor(number, device="cpu"), ctx, parallel)
        # hooks of torch, not of diffusers: a wrapped `forward` is an object of its own in each
        # layer, and `compile_repeated_blocks` would compile every one of them
        hooks = (module.register_forward_pre_hook(_inside), module.register_forward_hook(_outside))
        processor = getattr(module, "processor", None)
        module._dit_sparse_layer = cls(processor, _dense_backend(module), hooks)
        owner, instead = getattr(module, "processor", module), adapter.instead
        if ATTENTION not in instead:
            if hasattr(owner, "_attention_backend"):
                owner._attention_backend = BACKEND
            else:
                instead = (*instead, ATTENTION)
        if instead:
            capture(owner, *instead)
            _introduce(type(owner))

    def disable(self, module: Any) -> None:
        # what the user put there meanwhile stays
        owner = getattr(module, "processor", module)
        release(owner)
        if owner is self.processor and getattr(owner, "_attention_backend", None) is BACKEND:
            owner._attention_backend = self.backend
        for hook in self.hooks:
            hook.remove()
        del module._dit_sparse, module._dit_sparse_layer


def _introduce(captured: type) -> None:
    """Make a captured class known to diffusers' guiders, where its host class is."""
    with suppress(ValueError):
        known = AttentionProcessorRegistry.get(captured.__bases__[0])
        AttentionProcessorRegistry.register(captured, known)


def _inside(module: Any, args: Any) -> None:
    """Tell the backend which layer it is called for, unless a guider skips its attention scores."""
    registry = getattr(module, "_diffusers_hook", None)
    hooks = () if registry is None else registry.hooks.values()
    skipped = any(getattr(hook, "skip_attention_scores", False) for hook in hooks)
    now.call = None if skipped else module._dit_sparse


def _outside(module: nn.Module, args: Any, output: Any) -> None:
    """Forget the layer: a backend value shared by other modules must not use it."""
    now.call = None


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
    call, plain = now.call, attn_mask is None or isinstance(attn_mask, Tensor)
    if call is not None and _parallel_config is not None and not call.parallel:
        raise DitSparseError(
            "enable_parallelism was called after dit_sparse.enable; call enable again"
        )
    if call is None or dropout_p or not plain:
        shared = {} if _parallel_config is None else {"parallel_config": _parallel_config}
        return dispatch_attention_fn(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, **shared
        )
    return torch.ops.dit_sparse.attend(
        query, key, value, attn_mask, call.layer, call.ctx, is_causal, scale
    )


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
    part, (tokens, heads) = session.parts[int(ctx[1])], q.shape[1:3]
    shared, of = part.ulysses, None
    if shared is not None:
        of = Sequence(*ctx[4:9].tolist())
        if of.after or (of.before and part.adapter.text != "prefix"):
            # box and extra tokens are one tensor to the host, which cuts it without knowing
            raise DitSparseError(
                f"{session.model} with {of.before + of.after} tokens beside those of the grid "
                "(references, conditions) is not supported under context parallelism"
            )
        q, k, v = (shared.gather(x, of) for x in (q, k, v))
        mask = None if mask is None else shared.gather_mask(mask, of)
    out = session.attend(q, k, v, number, ctx, scale, mask, causal, part.heads(heads))
    if not isinstance(out, Tensor):
        backend, gqa = part.dense[number], q.shape[2] != k.shape[2]
        if mask is not None and not out and backend not in MASKED:
            backend = AttentionBackendName.NATIVE
        dense = partial(
            dispatch_attention_fn, dropout_p=0.0, is_causal=causal, scale=scale, enable_gqa=gqa,
            backend=backend,
        )  # fmt: skip
        # what a mask hides is cut out: most kernels take none, and others are slower with one
        out = apart(out, q, k, v, lambda *x: dense(*x[:3])) if out else dense(q, k, v, mask)
    if shared is not None and of is not None:
        out = shared.scatter(out, of, tokens, heads)
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
