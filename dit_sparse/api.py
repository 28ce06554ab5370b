"""The functions a user calls; each loads what it needs at its first use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from dit_sparse.core import QKV, Context, Grid, Method, Plan
from dit_sparse.errors import ArgumentError, DitSparseError
from dit_sparse.kernels.contract import as_scale
from dit_sparse.parameters import check_impl, check_quant
from dit_sparse.profile import Profile
from dit_sparse.registry import get
from dit_sparse.reporting import Report
from dit_sparse.schedule import Schedule
from dit_sparse.weights import layer_weights

P = TypeVar("P")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    method: str | Method | Profile,
    *,
    grid: Grid | None = None,
    causal: bool = False,
    scale: float | None = None,
    impl: str = "auto",
    quant: str = "none",
    **params: Any,
) -> Tensor:
    """Run one attention call with a sparse method; no model needed.

    q: [B, H, Sq, D]; k, v: [B, Hkv, Skv, D], H a multiple of Hkv. grid: what the tokens mean;
    without it the sequence is cut in raster blocks. causal: query i sees keys j <= i + Skv - Sq.
    scale: of the logits, default D ** -0.5. impl: "auto", "triton", "torch" or "reference"; an
    explicit choice never falls back. quant: "fp8" for 8-bit products, relative error at most .05,
    where the kernel takes the call so; forward only. Returns [B, H, Sq, D].

        out = dit_sparse.attention(q, k, v, "pisa", keep=0.15, grid=dit_sparse.Grid(21, 30, 52))
    """
    check_quant(quant)
    x, ctx, value = _prepare(q, k, v, method, grid, causal, scale, impl, params)
    value = value if quant == "none" else value.with_quant(quant)
    with _ours():
        return value(x, ctx)


def plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    method: str | Method | Profile,
    *,
    grid: Grid | None = None,
    causal: bool = False,
    scale: float | None = None,
    impl: str = "auto",
    quant: str = "none",
    **params: Any,
) -> Plan:
    """Return the plan that `attention` with the same arguments would run."""
    check_quant(quant)
    x, ctx, value = _prepare(q, k, v, method, grid, causal, scale, impl, params)
    with _ours():
        return value.plan(x, ctx)


def enable(model: P, method: Any = None, *, schedule: Schedule | None = None, **params: Any) -> P:
    """Make the self-attention of a diffusers pipeline or transformer sparse, in place.

    method: a registered name, a `Method` value, a `Profile`, the path of one or the name of one
    that is shipped, such as "wan2.1-14b--pisa"; None is the profile found for this model, else
    "pisa", and the first call tells what it can gain. schedule:
    when to stay dense, instead of the method's own. params: of the method, and impl, quant ("fp8")
    and guard as in `dit_sparse.integrations.diffusers.enable`. Returns the same object; raises
    `UnsupportedModelError` when its class has no attention this package can replace.

        dit_sparse.enable(pipe, "pisa", keep=0.15)
    """
    from dit_sparse.integrations import diffusers

    return diffusers.enable(model, method, schedule=schedule, **params)


def disable(model: P) -> P:
    """Restore the original attention, bit for bit; does nothing when not enabled."""
    from dit_sparse.integrations import diffusers

    return diffusers.disable(model)


def report(model: Any) -> Report:
    """Return where the last generation was sparse, at what density, and what stayed dense."""
    from dit_sparse.integrations import diffusers

    return diffusers.report(model)


@contextmanager
def _ours() -> Iterator[None]:
    """Raise what a kernel says of its arguments as an error of this package."""
    try:
        yield
    except DitSparseError:
        raise
    except ValueError as error:
        raise ArgumentError(str(error)) from error


def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    method: str | Method | Profile,
    grid: Grid | None,
    causal: bool,
    scale: float | None,
    impl: str,
    params: dict[str, Any],
) -> tuple[QKV, Context, Method]:
    """Check the arguments of `attention` and `plan` and build the values they share."""
    check_impl(impl)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{name} is a {type(tensor).__name__}; expected a tensor")
        if tensor.ndim != 4:
            raise ArgumentError(f"{name} has shape {tuple(tensor.shape)}; expected [B, H, S, D]")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ArgumentError(
            f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; "
            "expected q [B, H, Sq, D], k and v [B, Hkv, Skv, D]"
        )
    if not q.numel() or not k.numel():
        raise ArgumentError(f"q {tuple(q.shape)} or k {tuple(k.shape)} has an axis of size 0")
    wide = q.is_floating_point() and q.element_size() > 1
    if not wide or not q.dtype == k.dtype == v.dtype:
        raise ArgumentError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; use one floating type of 2 to 8 bytes"
        )
    if not q.device == k.device == v.device:
        raise ArgumentError(f"q, k, v are on {q.device}, {k.device}, {v.device}; use one device")
    try:
        as_scale(scale, q.shape[3])
    except ValueError:
        raise ArgumentError(
            f"scale={scale!r} must be a finite number above 0; leave it out for D ** -0.5"
        ) from None
    if q.shape[1] % k.shape[1]:
        raise ArgumentError(f"q has {q.shape[1]} heads, no multiple of the {k.shape[1]} of k")
    if grid is not None and not isinstance(grid, Grid):
        raise ArgumentError(f"grid={grid!r} must be a Grid(frames, height, width) or None")
    if not isinstance(causal, bool):
        raise ArgumentError(f"causal={causal!r} must be True or False")
    if grid is not None and not q.shape[2] == k.shape[2] == grid.tokens:
        raise ArgumentError(
            f"grid={grid} has {grid.tokens} tokens; q has {q.shape[2]} and k has {k.shape[2]}"
        )
    if grid is not None and causal:
        raise ArgumentError("causal=True goes without a grid: a video grid has no causal order")
    if isinstance(method, str):
        method = get(method, **params)
    elif isinstance(method, Profile):
        method = method.build(**params)
    elif not isinstance(method, Method):
        raise ArgumentError(f"method={method!r} must be a name, a Method or a Profile")
    elif params:
        raise ArgumentError(
            f"{next(iter(params))!r} was given with a Method value; build it with "
            "dit_sparse.get(name, ...) instead"
        )
    weights = layer_weights(method, 0, q.device)
    ctx = Context(grid=grid, causal=causal, scale=scale, impl=impl, weights=weights)
    return QKV(q, k, v), ctx, method
