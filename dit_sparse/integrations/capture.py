"""Run other functions in the place of those of PyTorch that one processor or module calls.

    attention   ─ PyTorch's function ─▶ the op of the seam       where a class asks for no backend
    others      ─▶ what an adapter puts in their place

An object is captured by giving it a subclass of its own class, whose call runs under a function
mode: the object stays the same one, with its attributes, its signature and its code.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

MARK = "_dit_sparse_captured"
# a function of PyTorch, and what runs in its place
Instead = tuple[Callable[..., Any], Callable[..., Any]]


class Here(NamedTuple):
    """An attention layer: its number and context, int64 on the CPU; whether tokens are shared."""

    layer: Tensor
    ctx: Tensor
    parallel: bool = False


class _Now(threading.local):
    """The attention layer this thread is in."""

    call: Here | None = None


now = _Now()


def capture(owner: Any, *instead: Instead) -> None:
    """Make `owner`, a processor or a module, call other functions."""
    owner.__class__ = _subclass(type(owner), instead)


def release(owner: Any) -> None:
    """Undo `capture`; does nothing to what is not captured."""
    if MARK in vars(type(owner)):
        owner.__class__ = type(owner).__bases__[0]


def is_captured(owner: Any) -> bool:
    """Return whether the attention of `owner` is captured."""
    return ATTENTION in vars(type(owner)).get(MARK, ())


class _Mode(TorchFunctionMode):
    """Runs other functions in the place of some."""

    def __init__(self, instead: tuple[Instead, ...]) -> None:
        super().__init__()
        self.instead = instead

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.unflatten:
            # as a function, it is nothing that the compiler could trace
            return args[0].unflatten(*args[1:], **kwargs)
        for theirs, ours in self.instead:
            if func is theirs:
                return ours(*args, **kwargs)
        return func(*args, **kwargs)


def _lead(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend [B, H, S, D] by the op, while a layer is known; dropout stays PyTorch's."""
    here = now.call
    if dropout_p or here is None or query.ndim != 4:
        options = {"enable_gqa": True} if enable_gqa else {}
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options
        )
    x = (t.transpose(1, 2) for t in (query, key, value))
    out = torch.ops.dit_sparse.attend(*x, attn_mask, here.layer, here.ctx, is_causal, scale)
    return out.transpose(1, 2)


ATTENTION = (F.scaled_dot_product_attention, _lead)


@functools.cache
def _subclass(host: type, instead: tuple[Instead, ...]) -> type:
    """Return the subclass of a processor's or module's class that is captured."""
    name = "forward" if issubclass(host, nn.Module) else "__call__"
    inner = getattr(host, name)

    @functools.wraps(inner)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Mode(instead):
            return inner(self, *args, **kwargs)

    body = {name: call, MARK: instead, "__module__": host.__module__, "__doc__": host.__doc__}
    return type(host.__name__, (host,), body)
