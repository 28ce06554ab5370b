"""A ComfyUI node that makes the self-attention of a diffusion model sparse.

ComfyUI calls `transformer_options["optimized_attention_override"](attention, q, k, v, heads, ...)`
in place of its own attention, and the wrappers of a model around its sampling ("outer_sample") and
around every call of the network ("diffusion_model"). The node sets one of each on a clone of the
model; nothing of ComfyUI is imported.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from dit_sparse import Context, Grid, Method, Schedule, get, methods
from dit_sparse.core import QKV
from dit_sparse.integrations.sequence import REST, Sequence, groups
from dit_sparse.registry import entry

KEY = "dit_sparse"
OVERRIDE = "optimized_attention_override"
# fewer tokens are those of a text refiner, and sparse attention does not pay below
TOKENS = 2000
# class of the network -> where its extra tokens stand: in front of the box, behind it, or text in
# front and the rest (reference pictures) behind
LAYOUTS = {
    "WanModel": "front",
    "VaceWanModel": "front",
    "CameraWanModel": "front",
    "HunyuanVideo": "behind",
    "Flux": "text first",
    "Chroma": "text first",
}
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Sparse:
    """The attention of one patched model: its method, and where the sampling is.

    previous: an override that was there before, which dense calls go to. box: (frames, height,
    width, extra tokens in front, behind) of the call of the network that is running, None where
    they are not known. calls: of the sampling, by why they were dense ("" = sparse).
    """

    method: Method
    label: str
    previous: Callable[..., Tensor] | None = None
    network: Any = None
    box: tuple[int, int, int, int, int] | None = None
    step: int = 0
    steps: int = 0
    branch: Any = None
    counts: Counter[int] = field(default_factory=Counter)
    states: dict[Any, dict] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    densities: list[Tensor] = field(default_factory=list)

    def __deepcopy__(self, memo: dict) -> Sparse:
        # a clone of the model copies its options, but shares its wrappers
        return self

    def sample(self, sampler: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Wrap a whole sampling: forget the one before, and tell what this one did."""
        self.states.clear()
        self.calls.clear()
        self.densities.clear()
        try:
            return sampler(*args, **options)
        finally:
            log.info(self.report())
            self.states.clear()

    def enter(self, network: Any, x: Tensor, *args: Any, **options: Any) -> Any:
        """Wrap a call of the network, network(x, timestep, context, ...), x [B, C, (T,) H, W]."""
        self.network = network.class_obj
        found = options.get("transformer_options") or _options(args)
        self.box = _box(self.network, x, args)
        self.step, self.steps = _step(found)
        self.branch = tuple(found.get("cond_or_uncond", ()))
        self.counts.clear()
        return network(x, *args, **options)

    def __call__(
        self,
        attention: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        *rest: Any,
        **options: Any,
    ) -> Tensor:
        """Attend sparsely where it is self-attention of the grid, else as before.

        q, k, v: [B, S, H * D], or [B, H, S, D] with skip_reshape; the output is [B, S, H * D], or
        [B, H, S, D] with skip_output_reshape.
        """

        def dense(why: str = "") -> Tensor:
            if why:
                self.calls[why] += 1
            whom = (attention,) if self.previous is None else (self.previous, attention)
            return whom[0](*whom[1:], q, k, v, heads, mask, *rest, **options)

        reshaped = options.get("skip_reshape", False)
        queries, keys = (t.shape[2 if reshaped else 1] for t in (q, k))
        found = options.get("transformer_options") or {}
        of = self._sequence(queries, found)
        if queries != keys or of is None:
            return dense()
        if mask is not None:
            return dense("an attention mask")
        layer, total = self._layer(found)
        if self.method.schedule.at(layer, self.step, self.steps) == "dense":
            return dense("schedule")
        if not reshaped:
            q, k, v = (t.unflatten(2, (heads, -1)) for t in (q, k, v))
        else:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = self._attend(q, k, v, of, layer, total, options.get("scale"))
        self.calls[""] += 1
        return out.transpose(1, 2) if options.get("skip_output_reshape") else out.flatten(2)

    def _sequence(self, tokens: int, options: dict[str, Any]) -> Sequence | int | None:
        """Return what the tokens of a call are, their number alone where the grid is not known."""
        if self.box is None:
            return tokens if tokens >= TOKENS else None
        frames, height, width, before, after = self.box
        # Wan tells itself what it made of its input, joined frames included
        frames, height, width = options.get("grid_sizes", (frames, height, width))
        extra = tokens - prod((frames, height, width))
        before = extra - after if before == REST else before
        after = extra - before if after == REST else after
        fits = before >= 0 and after >= 0 and before + after == extra
        return Sequence(int(frames), int(height), int(width), before, after) if fits else None

    def _layer(self, options: dict[str, Any]) -> tuple[int, int]:
        """Return the number of the layer, and how many there are."""
        sizes = [
            len(getattr(self.network, name, ()))
            for name in ("double_blocks", "single_blocks", "blocks")
        ]
        layer = options.get("block_index", sum(self.counts.values()))
        first = sizes[0] if options.get("block_type") == "single" else 0
        return first + layer, max(sum(sizes), first + layer + 1)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        of: Sequence | int,
        layer: int,
        layers: int,
        scale: float | None,
    ) -> Tensor:
        """Run the method on q, k, v [B, S, H, D]; returns [B, S, H, D]."""
        number = self.counts[layer]
        self.counts[layer] += 1
        state = self.states.setdefault((layer, self.branch, number), {})
        if isinstance(of, int):
            return self._run(
                QKV(*(t.transpose(1, 2) for t in (q, k, v))), None, layer, state, scale
            )
        (group,) = groups(of, None, q.device)
        if not state:
            self.method.check(layers, q.shape[2], self.steps, group.grid)
        x = QKV(*(group.take(t).transpose(1, 2) for t in (q, k, v)))
        part = self._run(x, group.grid, layer, state, scale)
        if isinstance(group.tokens, slice):
            return part
        out = torch.empty_like(part)
        group.put(out, part)
        return out

    def _run(
        self, x: QKV, grid: Grid | None, layer: int, state: dict, scale: float | None
    ) -> Tensor:
        ctx = Context(grid, layer, self.step, self.steps, scale=scale, state=state)
        plan = self.method.plan(x, ctx)
        self.densities.append(plan.density())
        return self.method.compute(x, plan, ctx).transpose(1, 2)

    def report(self) -> str:
        """Return in one line what the sampling did."""
        total, sparse = sum(self.calls.values()), self.calls[""]
        density = float(torch.stack(self.densities).mean()) if self.densities else 1.0
        grid = "raster blocks, for its grid is not known" if self.box is None else "its grid"
        text = f"dit_sparse: {self.label} on {type(self.network).__name__} by {grid}: {sparse} of "
        text += f"{total} self-attention calls sparse, density {density:.3f} there"
        reasons = [f"{count} dense: {why}" for why, count in self.calls.items() if why and count]
        return "; ".join([text, *reasons])


def _options(args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the transformer options among positional arguments."""
    return next((a for a in args if isinstance(a, dict) and OVERRIDE in a), {})


def _box(network: Any, x: Tensor, args: tuple[Any, ...]) -> tuple[int, int, int, int, int] | None:
    """Return the tokens of latents [B, C, (T,) H, W] in a known network, padded up to patches."""
    layout = LAYOUTS.get(type(network).__name__)
    if layout is None:
        return None
    patch = network.patch_size
    patch = (1, patch, patch) if isinstance(patch, int) else (1, *patch)[-3:]
    sizes = (1, *x.shape[2:])[-3:]
    frames, height, width = (ceil(n / p) for n, p in zip(sizes, patch, strict=True))
    context = args[1] if len(args) > 1 else None
    if layout == "text first" and not isinstance(context, Tensor):
        return None
    text = context.shape[1] if isinstance(context, Tensor) else 0
    ends = {"front": (REST, 0), "behind": (0, REST), "text first": (text, REST)}
    return frames, height, width, *ends[layout]


def _step(options: dict[str, Any]) -> tuple[int, int]:
    """Return the step and their number; where nobody tells, the last of many: all is sparse."""
    sigmas, now = options.get("sample_sigmas"), options.get("sigmas")
    if sigmas is None or now is None:
        return 999, 1000
    steps = len(sigmas) - 1
    nearest = int((sigmas - now.flatten()[0].to(sigmas)).abs().argmin())
    return min(nearest, steps - 1), steps


class SparseAttention:
    """The node: a model, a method and its budget in; the patched model out."""

    CATEGORY = "model_patches"
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)
    DESCRIPTION = "Sparse attention in the self-attention layers of a video or image model."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs, as ComfyUI asks for them."""
        names = [name for name in methods() if "keep" in entry(name).parameters]
        share = {"default": 0.25, "min": 0.01, "max": 1.0, "step": 0.01}
        steps = {"default": 0.2, "min": 0.0, "max": 0.95, "step": 0.05}
        return {
            "required": {
                "model": ("MODEL",),
                "method": (names, {"default": "pisa"}),
                "keep": ("FLOAT", {**share, "tooltip": "Share of exact attention."}),
                "dense_steps": ("FLOAT", {**steps, "tooltip": "Share of the steps, at the start."}),
                "dense_layers": ("INT", {"default": 1, "min": 0, "max": 100}),
            }
        }

    def patch(
        self,
        model: Any,
        method: str,
        keep: float,
        dense_steps: float = 0.2,
        dense_layers: int = 1,
    ) -> tuple[Any]:
        """Return a clone of the model that attends sparsely; the one given is left as it is."""
        value = get(method, keep=keep).with_schedule(Schedule(dense_steps, dense_layers))
        model = model.clone()
        options = model.model_options.setdefault("transformer_options", {})
        previous = options.get(OVERRIDE)
        # twice replaces
        previous = previous.previous if isinstance(previous, Sparse) else previous
        sparse = Sparse(value, f"{method} keep={keep:g}", previous)
        options[OVERRIDE] = sparse
        for kind, wrapper in (("outer_sample", sparse.sample), ("diffusion_model", sparse.enter)):
            model.remove_wrappers_with_key(kind, KEY)
            model.add_wrapper_with_key(kind, KEY, wrapper)
        return (model,)


NODE_CLASS_MAPPINGS = {"DitSparseAttention": SparseAttention}
NODE_DISPLAY_NAME_MAPPINGS = {"DitSparseAttention": "Sparse Attention (dit_sparse)"}
