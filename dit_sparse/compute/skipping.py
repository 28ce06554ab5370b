"""Exact attention that leaves out more blocks than its plan, by what its softmax meets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.compute.attend import Attend
from dit_sparse.core import QKV, Context, Layout, Plan, Score, Select, on_device
from dit_sparse.kernels.attention import implementation
from dit_sparse.kernels.pool import pick
from dit_sparse.kernels.skip import BELOW_PEAK, WIDEST, fits, skipping_attention


@dataclass(frozen=True)
class AttendSkipping:
    """Exact softmax attention to the blocks of a plan, but for those below its edge.

    A plan with an edge keeps every visible block of causal attention; the kernel finds what
    `BelowPeak` measures on its way and leaves out the blocks below the edge, and
    ctx.cache["density"] is the share of the visible pairs that it computed, a 0-d float32 tensor.
    It takes causal attention of several queries in the given order, in equal blocks, no gradients,
    not the reference; else as `Attend`. Used by BLASST.
    """

    def edge(
        self, score: Score, select: Select, x: QKV, layout: Layout, ctx: Context
    ) -> float | None:
        """Return the edge of a selection, None where the kernel does not make its choice."""
        edge_of = getattr(select, "edge_of", None)
        if getattr(score, "measure", None) != BELOW_PEAK or edge_of is None:
            return None
        equal = all(blocks.order is None and blocks.offsets is None for blocks in layout)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in x)
        plain = ctx.causal and x.q.shape[2] > 1 and ctx.impl != "reference"
        if not (plain and equal and not wanted and fits(*x, (layout.q.size, layout.kv.size))):
            return None
        return edge_of(layout)

    @on_device
    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        if plan.edge is None:
            return Attend()(x, plan, ctx)
        if not torch.compiler.is_compiling():
            name = pick(x.q, ctx.impl, *x[1:], limit=WIDEST)
            ctx.once("kernel", lambda: (name, f"skips on its way; {implementation(x.q)[1]}"))
        # the only block of a short sequence is as wide as that: a tile may be wider
        tile = tuple(max(16, 1 << (blocks.size - 1).bit_length()) for blocks in plan.layout)
        out, _, done = skipping_attention(
            *x, edge=plan.edge, tile=(tile[0], tile[1]), causal=plan.causal, scale=ctx.scale,
            impl=ctx.impl,
        )  # fmt: skip
        ctx.cache["density"] = computed(done, plan.layout)
        return out


def computed(done: Tensor, layout: Layout) -> Tensor:
    """Return the share of the pairs of causal attention in tiles that were computed, 0-d float32.

    done: [B, H, M] how many key blocks each query block computed. What is left out are whole
    blocks, seen by every query of theirs.
    """
    (rows, cols), device = layout, done.device
    stop = rows.bounds(device)[0, 0, 1:] + cols.length - rows.length
    skipped = (stop.clamp(min=0) + cols.size - 1) // cols.size - done
    # numbers of pairs outgrow float32's integers, not its range
    first = max(cols.length - rows.length, 0) + 1
    seen = min(rows.length, cols.length) * (first + cols.length) / 2
    left = (skipped * rows.sizes(device)[0, 0]).float().mean((0, 1)).sum() * cols.size
    return 1 - left / max(seen, 1)
