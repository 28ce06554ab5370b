"""The transformers seam: an attention function, its mask function, and one custom op.

    model ─ mask function ─▶ a compact mask [B, 1, 1, Skv], or the whole one where it says more
    layer ─ attention function ─▶ the op (the method), or the layer's own dense attention

Both are registered under one name. Without a mask function of its own an attention function gets
no mask at all, also for padded batches, and is silently wrong. What makes a call dense is decided
in Python, so that a compiled model holds plain attention there; the op is opaque and reads what
changes between calls from tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dit_sparse.core import QKV
from dit_sparse.errors import DitSparseError, MissingDependencyError
from dit_sparse.integrations.transformers_cache import cached_keys
from dit_sparse.integrations.transformers_session import PAST, VALID, TextSession

try:
    import transformers as host
except ImportError as error:
    raise MissingDependencyError(
        "this needs transformers: pip install 'transformers>=5'"
    ) from error
try:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import causal_mask_function, sdpa_mask
except ImportError as error:
    raise DitSparseError(
        f"transformers {host.__version__} has no attention interface that dit_sparse knows "
        f"({error}); use transformers 5"
    ) from error

NAME, WATCHED = "dit_sparse", "dit_sparse_watched"
SEEN = "_dit_sparse_seen"
# arguments of an attention call that change nothing in it; any other makes the call dense
HARMLESS = {
    "position_ids", "cache_position", "use_cache", "output_hidden_states", "output_router_logits",
    "num_items_in_batch", "logits_to_keep", "return_dict", "labels",
}  # fmt: skip
# arguments with a better name for the report
REASONS = {
    "s_aux": "attention sinks",
    "softcap": "softcap of the logits",
    "sliding_window": "sliding window",
    "position_bias": "position bias",
    "cache": "paged cache",
    "cu_seq_lens_q": "packed sequences",
    "seq_idx": "packed sequences",
}
# attention functions that honour these: the model's own eager one
EAGER = {"s_aux", "softcap"}


@dataclass(frozen=True)
class Link:
    """What `enable` hangs on an attention module.

    call: [2] int64 on the CPU, the session's number and the layer's. before: the implementation
    the model had. hook: what tells the session of the layer's cache.
    """

    session: TextSession
    layer: int
    call: Tensor
    before: str
    hook: RemovableHandle


def link(module: nn.Module, session: TextSession, layer: int, before: str) -> None:
    """Connect an attention module to a session."""
    with torch.inference_mode(False):
        call = torch.tensor([session.handle, layer])
    hook = module.register_forward_pre_hook(_begins, with_kwargs=True)
    vars(module)["_dit_sparse"] = Link(session, layer, call, before, hook)


def linked(module: nn.Module) -> Link | None:
    """Return the link of an attention module, None without one."""
    return vars(module).get("_dit_sparse")


def unlink(module: nn.Module) -> None:
    """Undo `link`."""
    own = vars(module).pop("_dit_sparse", None)
    if own is not None:
        own.hook.remove()


def _begins(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tell the session what a layer's cache holds before the layer adds to it."""
    own = linked(module)
    if own is not None and not torch.compiler.is_compiling():
        own.session.growth.before(own.layer, cached_keys(module, kwargs))


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **rest: Any,
) -> Tensor | None:
    """Return what the layers get as their mask.

    A causal mask with padding, whatever the cache, is told by two bits per key: int8
    [B, 1, 1, Skv], VALID and PAST. None is a causal mask of a square. Everything else comes as it
    is, bool [B, 1, Sq, Skv].
    """
    plain = mask_function is causal_mask_function and not use_vmap and not kv_offset
    if not plain or (not allow_is_causal_skip and q_length > 1):
        return sdpa_mask(
            batch_size,
            q_length,
            kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            use_vmap=use_vmap,
            device=device,
            **rest,
        )
    if attention_mask is None and q_length == kv_length:
        return None
    past = torch.arange(kv_length, device=device) < q_offset + q_length
    bits = past[None].expand(batch_size, -1).to(torch.int8) * PAST
    if attention_mask is None:
        bits = bits + VALID
    else:
        missing = max(kv_length - attention_mask.shape[-1], 0)
        valid = nn.functional.pad(attention_mask.to(device), (0, missing))[:, :kv_length]
        bits = bits + (valid != 0).to(torch.int8) * VALID
    return bits[:, None, None]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend q [B, H, Sq, D] to k, v [B, Hkv, Skv, D] by the method, or densely with a reason."""
    own, queries, keys = linked(module), query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    reason = "not a layer of the enabled model"
    if own is not None:
        reason = _odd(kwargs, dropout, causal, query, attention_mask)
        reason = reason or own.session.why_dense(own.layer, queries, keys)
    found, kept = None, False
    if own is not None and not torch.compiler.is_compiling():
        kept = own.session.growth.after(own.layer, key)
        found = own.session.read(attention_mask, queries, keys)
        if not reason and found is not None and found.rows is None:
            reason = "padding between the tokens of a sequence"
        if reason:
            end = keys if found is None else found.end
            own.session.count(own.layer, queries, end, reason)
            if not kept:
                own.session.forget(own.layer)
    if own is None or reason:
        before = "sdpa" if own is None else own.before
        eager = before == "eager" or any(kwargs.get(name) is not None for name in EAGER)
        if attention_mask is not None and attention_mask.dtype == torch.int8:
            whole = found is not None and found.plain() and queries in (1, found.end)
            if whole and found is not None and queries == 1:
                key, value = key[:, :, : found.end], value[:, :, : found.end]
            attention_mask = None if whole else _whole(attention_mask, queries)
        dense = _eager if eager else sdpa_attention_forward
        return dense(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
            is_causal=causal, **kwargs,
        )  # fmt: skip
    return torch.ops.dit_sparse.attend_text(
        query, key, value, attention_mask, own.call, scaling, kept
    ), None


def _odd(
    kwargs: dict[str, Any], dropout: float, causal: bool, q: Tensor, mask: Tensor | None
) -> str:
    """Return what makes a call one that no method honours, "" when nothing does."""
    for name, value in kwargs.items():
        if name not in HARMLESS and value is not None and value is not False:
            return REASONS.get(name, f"argument {name!r}, which no method honours")
    if not causal:
        return "not causal"
    if dropout:
        return "dropout"
    if torch.is_grad_enabled() and q.requires_grad:
        return "gradients are wanted"
    if mask is not None and mask.dtype != torch.int8:
        # a compiler cannot ask whether sequences are packed and always gets the mask that tells
        square = mask.dtype == torch.bool and mask.shape[-1] == mask.shape[-2]
        if not (square and torch.compiler.is_compiling()):
            return "a mask that is not causal with padding"
    return ""


def _whole(mask: Tensor, queries: int) -> Tensor:
    """Return the bool mask [B, 1, Sq, Skv] that a compact one stands for."""
    end = ((mask & PAST) != 0).sum(-1, keepdim=True)
    row = torch.arange(queries, device=mask.device)[:, None] - queries
    key = torch.arange(mask.shape[-1], device=mask.device)
    return ((mask & VALID) != 0) & (key <= end + row)


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    is_causal: bool,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Run the model's own eager attention, which knows of sinks and softcaps."""
    queries, mask = query.shape[2], attention_mask
    if mask is None and is_causal and queries > 1:
        key, value = key[:, :, :queries], value[:, :, :queries]
        mask = query.new_ones(queries, queries, dtype=torch.bool).tril()[None, None]
    if mask is not None and mask.dtype == torch.bool:
        none = torch.zeros((), dtype=query.dtype, device=query.device)
        mask = torch.where(mask, none, torch.finfo(query.dtype).min)
    forward = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return forward(module, query, key, value, mask, **kwargs)


# the op reads Python state: a CUDA graph must not swallow it
_UNSAFE: Any = {}
if hasattr(torch.Tag, "cudagraph_unsafe"):
    _UNSAFE["tags"] = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("dit_sparse::attend_text", mutates_args=(), **_UNSAFE)
def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, call: Tensor, scale: float | None, kept:
    bool,
) -> Tensor:  # fmt: skip
    session, layer = TextSession.of(call)
    found = session.read(mask, q.shape[2], k.shape[2])
    if mask is not None and found is None:
        found = session.recognise(mask)
    assert found is not None
    if not kept:
        session.forget(layer)
    if mask is not None and found.rows is None:
        # only a compiled model comes here with such a mask: it had to choose before
        session.count(layer, q.shape[2], found.end, "a mask that is not causal with padding")
        whole = mask if mask.dtype == torch.bool else _whole(mask, q.shape[2])
        out = nn.functional.scaled_dot_product_attention(
            q, k, v, whole, scale=scale, enable_gqa=True
        )
    else:
        out = session.attend(QKV(q, k, v), found, layer, scale)
    return out.transpose(1, 2).contiguous()


@_attend.register_fake
def _fake(q, k, v, mask, call, scale, kept):
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


def _watched(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend densely, and leave q, k, v where `watch` wants them."""
    vars(module)[SEEN](QKV(query, key, value))
    return _attention(module, query, key, value, *args, **kwargs)


def watch(module: nn.Module, tell: Callable[[QKV], None] | None) -> None:
    """Tell of the q, k, v of an attention module under the implementation `WATCHED`; None: end."""
    if tell is None:
        vars(module).pop(SEEN, None)
    else:
        vars(module)[SEEN] = tell


for _name, _function in ((NAME, _attention), (WATCHED, _watched)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, _mask)
