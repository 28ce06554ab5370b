"""What a sparse call does to its layer, against exact attention on the very q, k, v it was given.

    reading = read(x, plan, out, ctx)           # error and kept mass of one call
    sample = Sample.of(x, ctx)                  # exact rows once, then any number of candidates:
    sample.error(out), sample.kept(plan)

For sampled query rows t of a head, with p_t = softmax(scale q_t K^T) over all keys:

    error = |o - p V|_F / |p V|_F               over the sampled rows
    kept  = mean_t sum_j p_tj [level(t, j) = 1], and the same for pooled levels

Memory: a few query rows times the keys at once, never all queries times all keys. Nothing here
waits for the device. Users: `eval`, `inspect`, the search.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dit_sparse.arranged import cut
from dit_sparse.core import QKV, Blocks, Context, Plan
from dit_sparse.errors import BrokenOutputError
from dit_sparse.integrations.session import Call
from dit_sparse.kernels.contract import per_head
from dit_sparse.kernels.pool import block_ids

ROWS = 64  # sampled query rows of a call
SCRATCH = 1 << 24  # logits at once


class Reading(NamedTuple):
    """What one call did, per batch element and head, [B, H] each.

    off, size: squared norms of the difference and of the exact output over the sampled rows.
    exact, pooled: share of the attention mass in exact blocks and in pooled ones; the remainder
    stands for the rest.
    """

    off: Tensor
    size: Tensor
    exact: Tensor
    pooled: Tensor

    @property
    def error(self) -> Tensor:
        """The relative error of each head's output, [B, H]."""
        return (self.off / self.size).sqrt()

    @property
    def joint(self) -> Tensor:
        """The relative error of the layer's output, all heads together, [B]."""
        return (self.off.sum(1) / self.size.sum(1)).sqrt()


def read(x: QKV, plan: Plan, out: Tensor, ctx: Context, count: int = ROWS) -> Reading:
    """Measure one sparse call; out: [B, H, Sq, Dv] in the given token order."""
    sample = Sample.of(x, ctx, count)
    return Reading(*sample.distance(out), *sample.kept(plan))


@dataclass(frozen=True, eq=False)
class Sample:
    """Exact attention of some query rows of one call.

    rows: [R] int64 query positions; out: [B, H, R, Dv], float32 or wider.
    """

    x: QKV
    ctx: Context
    rows: Tensor
    out: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, x: QKV, ctx: Context, count: int = ROWS) -> Sample:
        """Compute `count` query rows spread evenly over the sequence, the same ones every time."""
        rows = spread(x.q.shape[2], count, x.q.device)
        v = per_head(x.v, *x.q.shape[:2])
        parts = [p @ v.to(p.dtype) for _, p in weights(x, rows, ctx)]
        return cls(x, ctx, rows, torch.cat(parts, 2))

    def distance(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """Return |o - p V|^2 and |p V|^2 over the sampled rows of `out` [B, H, Sq, Dv], [B, H]."""
        off = out.index_select(2, self.rows).to(self.out.dtype) - self.out
        return off.square().sum((2, 3)), self.out.square().sum((2, 3))

    def error(self, out: Tensor) -> Tensor:
        """Return the relative error of each head of an output [B, H, Sq, Dv], [B, H]."""
        off, size = self.distance(out)
        return (off / size).sqrt()

    @torch.no_grad()
    def kept(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return the share of the mass in exact and in pooled blocks, [B, H] each."""
        mass = block_mass(self.x, plan, self.rows, self.ctx)
        level = row_level(self.x, plan, self.rows)
        exact, pooled = ((mass * kind).sum(-1).mean(-1) for kind in (level == 1, level > 1))
        return exact, pooled


def weights(x: QKV, rows: Tensor, ctx: Context) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield some of the rows [r] and their attention weights over all keys, [B, H, r, Skv]."""
    batch, heads, queries, dim = x.q.shape
    kv_heads, keys = x.k.shape[1:3]
    scale = dim**-0.5 if ctx.scale is None else ctx.scale
    wide = torch.promote_types(x.q.dtype, torch.float32)
    k = x.k.to(wide).mT
    for some in rows.split(max(1, SCRATCH // (batch * heads * keys))):
        # the query heads of one key head side by side: [B, Hkv, H / Hkv * r, D]
        q = x.q.index_select(2, some).to(wide).reshape(batch, kv_heads, -1, dim)
        logits = (scale * q @ k).view(batch, heads, len(some), keys)
        if ctx.causal:
            future = torch.arange(keys, device=some.device) > some[:, None] + keys - queries
            logits = logits.masked_fill(future, float("-inf"))
        yield some, logits.softmax(-1)


def block_mass(x: QKV, plan: Plan, rows: Tensor, ctx: Context) -> Tensor:
    """Return the attention mass of each sampled row in each key block, [B, H, R, N]."""
    shape = (*x.q.shape[:2], x.k.shape[2])
    ids = token_blocks(plan.layout.kv, shape, x.k.device)[:, :, None]
    parts = []
    for some, p in weights(x, rows, ctx):
        # one spare block for tokens that are in none
        mass = p.new_zeros(*shape[:2], len(some), plan.layout.kv.count + 1)
        parts.append(mass.scatter_add_(-1, ids.expand_as(p), p)[..., :-1])
    return torch.cat(parts, 2)


def row_level(x: QKV, plan: Plan, rows: Tensor) -> Tensor:
    """Return the level of each key block for each sampled row, [B, H, R, N] int8."""
    blocks = token_blocks(plan.layout.q, x.q.shape[:3], x.q.device)[:, :, rows]
    at = blocks.clamp(max=plan.level.shape[2] - 1)[..., None]
    return plan.level.gather(2, at.expand(-1, -1, -1, plan.level.shape[3]))


def token_blocks(blocks: Blocks, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the block of each token in the given order, [B, H, S] int64; shape: (B, H, S)."""
    ids = block_ids(cut(blocks), torch.empty(1, device=device).expand(shape))
    if blocks.order is None:
        return ids
    order = per_head(blocks.order, *shape[:2])
    return torch.empty_like(order).scatter_(2, order, ids)


@lru_cache(maxsize=32)
def spread(tokens: int, count: int, device: torch.device) -> Tensor:
    """Return up to `count` positions [R] int64, one at random in each of as many equal parts."""
    count = min(count, tokens)
    edges = torch.arange(count + 1) * tokens // count
    place = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (edges[:-1] + (place * edges.diff()).long()).to(device)


class Ledger:
    """Collects the readings of one generation; an argument for `watching`.

    Readings stay on the device until they are asked for.
    """

    def __init__(self, count: int = ROWS) -> None:
        self.count = count
        self.found: dict[tuple[str, int, int], list[Tensor]] = defaultdict(list)

    def __call__(self, call: Call) -> None:
        reading = read(call.x, call.plan, call.out, call.ctx, self.count)
        layer = torch.stack([reading.joint, reading.exact.mean(1), reading.pooled.mean(1)]).mean(1)
        self.found[call.part, call.layer, call.step].append(layer)

    def layers(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return by transformer and layer the mean error and the mean kept mass of its calls.

        Raises BrokenOutputError where one is not finite.
        """
        calls: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
        for (part, layer, _), readings in self.found.items():
            calls[part, layer] += readings
        told: dict[str, dict[str, dict[str, float]]] = {}
        for (part, layer), readings in sorted(calls.items()):
            values = torch.stack(readings).mean(0).tolist()
            names = ("error", "recall", "pooled")
            named: dict[str, float] = dict(zip(names, values, strict=True))
            for name, value in named.items():
                if not math.isfinite(value):
                    raise BrokenOutputError(
                        f"layer {layer} of {part}: attention {name} is {value}: its output is not "
                        "finite, or all zero without the method; probes=0 leaves attention out"
                    )
            told.setdefault(part, {})[str(layer)] = named
        return told

    def means(self) -> dict[str, float]:
        """Return the mean error and kept mass of all calls; nothing when none was seen."""
        readings = [reading for calls in self.found.values() for reading in calls]
        if not readings:
            return {}
        values = torch.stack(readings).mean(0).tolist()
        return dict(zip(("error", "recall", "pooled"), values, strict=True))
