"""The quality guard: some query rows of every sparse layer, held against exact attention.

    estimate = |o - p V|_F / |p V|_F     over the sampled rows of a layer at a step, all heads

p = softmax of these rows over all keys, in the model's dtype with float32 inside: its rounding, an
estimate of up to .005 in 16 bits, is the least bound that makes sense. Where the estimate exceeds
the bound, the layer is dense for the rest of the generation. Nothing is read from the device but
once per step, when it was waited for anyway.

Cost, at most 2 % of the time of a block. Exact rows read all keys and values of a head once: 4 S D
bytes in 16 bits. A GPU makes about 300 operations in the time it moves one byte (H100: 989e12 and
3.35e12 per second), so this takes as long as 300 rows at 4 S D operations each, and fewer rows are
not cheaper. The linear layers of a transformer block, 24 S (H D)^2 operations, are worth 6 H D rows
of all heads; the attention itself comes on top. A look is then 300 / (6 H D) of its block, and
a layer has its turn every 2500 / (H D) steps: at each step from a width of 2500 on, at every second
one in Wan 1.3B (1536). Only a model too narrow for its number of steps costs more: every layer has
a turn in each generation.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_sparse.compute.attend import dense
from dit_sparse.core import QKV, Context
from dit_sparse.errors import ArgumentError
from dit_sparse.reporting import Event, Guarded
from dit_sparse.schedule import Schedule

ROWS = 64  # sampled query rows of a head
COST = 0.02  # the largest share of the time of a block
LOOK = 300  # what a look costs, in rows of arithmetic
BLOCK = 6  # what the linear layers of a block cost, in rows per channel
# places are fractions of 2^24: exact on every device, also times a number of rows and tokens
BITS = 24
# 2^24 / p and 2^24 / p^2, p = 1.3247... the root of p^3 = p + 1: Roberts' sequence R2 (2018)
BY_LOOK, BY_ROW = 12664745, 9560333


@dataclass
class Guard:
    """The guard of one enabled model.

    bound: the largest relative error a layer may have, between 0 and 1. schedule: of the method.
    dense: (part, layer) of the layers that exceeded it in this generation. looks: calls looked at.
    """

    bound: float
    schedule: Schedule
    dense: set[tuple[int, int]] = field(default_factory=set)
    looks: int = 0
    worst: float = 0.0
    found: list[tuple[int, int, int, float]] = field(default_factory=list)
    seen: list[tuple[int, int, int, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        bound = self.bound
        if not isinstance(bound, float) or not 0 < bound < 1:
            raise ArgumentError(
                f"guard={bound!r} must be a relative error between 0 and 1, such as 0.05; leave it "
                "out for no guard"
            )

    def reset(self) -> None:
        """Forget a generation."""
        self.looks, self.worst = 0, 0.0
        for kept in (self.dense, self.found, self.seen):
            kept.clear()

    def look(self, x: QKV, out: Tensor, part: int, call: Context) -> None:
        """Compare some rows of a sparse call, out [B, H, S, Dv], when it is its layer's turn.

        Only tokens of the grid: every method keeps text exactly, and it may have no queries.
        """
        if not self._has_turn(x, call):
            return
        grid = call.grid
        first, tokens = 0, x.q.shape[2]
        if grid is not None:
            first, tokens = grid.text if grid.text_first else 0, grid.video
        rows = first + sampled(x.q.shape[1], tokens, self.looks, x.q.device)
        # not cuDNN: it splits no keys, so that few rows of few heads leave most of a GPU idle (one
        # H200, 64 rows of 12 heads over 32,760 keys: .43 ms, flash .07)
        with sdpa_kernel(
            [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        ):
            exact = dense(x._replace(q=_take(x.q, rows)), call).float()
        off = _take(out, rows).float() - exact
        sums = torch.stack([off.square().sum(), exact.square().sum()])
        self.seen.append((part, call.layer, call.step, sums))
        self.looks += 1

    def judge(self) -> None:
        """Send layers back to dense whose estimate exceeds the bound; waits for the device."""
        seen, self.seen = self.seen, []
        if not seen:
            return
        layers: dict[tuple[int, int, int], list[Tensor]] = defaultdict(list)
        for *at, sums in seen:
            layers[at[0], at[1], at[2]].append(sums)
        totals = torch.stack([torch.stack(sums).sum(0) for sums in layers.values()])
        # an output that is zero, as it should be, has no error
        size = totals[:, 1].clamp(min=torch.finfo(totals.dtype).tiny)
        errors = (totals[:, 0] / size).sqrt().tolist()
        for (part, layer, step), error in zip(layers, errors, strict=True):
            self.worst = max(self.worst, error)
            if not error <= self.bound and (part, layer) not in self.dense:
                self.dense.add((part, layer))
                self.found.append((part, layer, step, error))

    def why_dense(self, part: int, layer: int) -> str:
        """Return the reason why a layer is dense by now, "" when it is not."""
        return f"guard: an error above {self.bound:g}" if (part, layer) in self.dense else ""

    def told(self, names: list[str]) -> Guarded:
        """Return what a report says; names: of the parts. Waits for the device."""
        self.judge()
        events = tuple(
            Event(names[part], layer, step, error, self.bound)
            for part, layer, step, error in self.found
        )
        return Guarded(self.bound, self.looks, self.worst, events)

    def _has_turn(self, x: QKV, call: Context) -> bool:
        """Return whether the layer of a call is looked at in this step."""
        heads, _ = call.held(x.q.shape[1])
        turns = ceil(LOOK / (COST * BLOCK * heads * x.q.shape[3]))
        sparse = call.steps - self.schedule.first_sparse_step(call.steps)
        return (call.layer + call.step) % max(1, min(turns, sparse)) == 0


def sampled(heads: int, tokens: int, look: int, device: torch.device) -> Tensor:
    """Return other positions of each head at every look, [H, R] int64, made on the device.

    One in each of R equal parts of the sequence, every token as probable as any other over the
    looks; all tokens where these are few.
    """
    count = min(ROWS, tokens)
    number = torch.arange(heads * count, device=device)
    place = (number * BY_ROW + look * BY_LOOK) % (1 << BITS)
    part = number % count
    return (((part << BITS) + place) * tokens // (count << BITS)).view(heads, count)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Return the rows [H, R] of x [B, H, S, D], [B, H, R, D]."""
    return x.gather(2, rows[None, :, :, None].expand(x.shape[0], -1, -1, x.shape[3]))
