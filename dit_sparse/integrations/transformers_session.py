"""One enabled language model: its method, what each forward pass does, and what stayed dense."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dit_sparse.compute.attend import Dense
from dit_sparse.constants import constant
from dit_sparse.core import QKV, Context, Heads, Method
from dit_sparse.integrations.parts import in_parts
from dit_sparse.integrations.transformers_cache import Growth
from dit_sparse.reporting import Cell, Tally
from dit_sparse.weights import layer_weights

# so few queries behind a longer past are drafted tokens to verify: a decoding step
DRAFT = 16
# bits of a compact mask: the key is no padding; the last query comes at or after it
VALID, PAST = 1, 2

_handles = itertools.count()
_live: weakref.WeakValueDictionary[int, TextSession] = weakref.WeakValueDictionary()


class Spans(NamedTuple):
    """Which keys are real: those of sample b are [rows[b][0], rows[b][1]), all of them below `end`.

    end: one past the last query's own key. rows: one for all samples, or one of each; None when
    padding lies between tokens.
    """

    end: int
    rows: tuple[tuple[int, int], ...] | None

    def plain(self) -> bool:
        """Tell whether no sample has padding."""
        return self.rows is not None and all(row == (0, self.end) for row in self.rows)


def spans(mask: Tensor) -> Spans:
    """Read a compact mask [B, 1, 1, Skv] int8; waits for the device, once per forward pass."""
    bits = mask[:, 0, 0].cpu()
    end = int(((bits[0] & PAST) != 0).sum())
    valid = (bits[:, :end] & VALID) != 0
    rows = []
    for row in valid:
        at = row.nonzero()[:, 0]
        start, stop = (int(at[0]), int(at[-1]) + 1) if len(at) else (end, end)
        if stop - start != len(at):
            return Spans(end, None)
        rows.append((start, stop))
    return Spans(end, tuple(rows))


def recognised(mask: Tensor) -> Spans:
    """Read a bool mask [B, 1, S, S]; rows are None unless it is causal with padding."""
    size = mask.shape[-1]
    valid = mask[:, 0, -1]
    whole = valid[:, None] & mask.new_ones(size, size).tril_()
    found = spans(valid[:, None, None].to(torch.int8) * VALID + PAST)
    return found if torch.equal(mask[:, 0], whole) else found._replace(rows=None)


def _middle(rows: slice, past: int) -> float:
    """Return the mean number of keys that some queries see."""
    return past + (rows.start + rows.stop + 1) / 2


class TextSession:
    """What `enable` creates. Compiled graphs hold only its number, in a tensor of each layer.

    A pass is one forward call of the model: 0 is the (first) prefill of a generation.
    """

    def __init__(
        self, model: str, label: str, method: Method, layers: int, impl: str, heads: Heads | None
    ) -> None:
        self.model, self.label, self.method = model, label, method
        self.layers, self.impl, self.heads = layers, impl, heads
        self.passes, self.latest = -1, layers
        # layer -> what it keeps of each group, a first token and its samples
        self.states: dict[int, dict[tuple[int, ...], dict]] = {}
        self.growth = Growth()
        # group -> what the layers of one pass tell each other, ctx.state["layers"]
        self.shared: dict[tuple[int, ...], dict] = {}
        self.tallies: dict[tuple[int, int], Tally] = {}
        self.implementations: dict[str, str] = {}
        self.mask: tuple[weakref.ref[Tensor] | None, Spans] = (None, Spans(0, None))
        self.handle = next(_handles)
        _live[self.handle] = self

    def __deepcopy__(self, memo: dict) -> TextSession:
        # a copied model keeps the number of this session in its layers
        return self

    @staticmethod
    def of(call: Tensor) -> tuple[TextSession, int]:
        """Return the session and the layer number of a layer's tensor [2]."""
        handle, layer = call.tolist()
        return _live[handle], layer

    def why_dense(self, layer: int, queries: int, keys: int) -> str:
        """Return why the method leaves a call dense, "" where it runs."""
        schedule = self.method.schedule
        if isinstance(self.method.compute, Dense):
            return "the method is dense"
        if schedule.at(layer, 1, 2) == "dense":
            return "dense layer of the schedule"
        decoding = queries == 1 or (queries <= DRAFT and queries < keys)
        if decoding and schedule.phase not in ("decode", "both"):
            return "decoding: the method is for prefill"
        if not decoding and schedule.phase == "decode":
            return "prefill: the method is for decoding"
        return ""

    def read(self, mask: Tensor | None, queries: int, keys: int) -> Spans | None:
        """Return the spans of a compact mask, or of none at all; None for any other mask."""
        if mask is None:
            # the keys behind a prefill are those of a static cache, still empty
            end = keys if queries == 1 else queries
            return Spans(end, ((0, end),))
        return self._once(mask, spans) if mask.dtype == torch.int8 else None

    def recognise(self, mask: Tensor) -> Spans:
        """Return the spans of a bool mask [B, 1, S, S]."""
        return self._once(mask, recognised)

    def _once(self, mask: Tensor, read: Callable[[Tensor], Spans]) -> Spans:
        """Read a mask once for all layers of a pass."""
        known, found = self.mask
        if known is None or known() is not mask:
            found = read(mask)
            self.mask = (weakref.ref(mask), found)
        return found

    def begin(self, layer: int, queries: int, end: int) -> Tally:
        """Count a call; a pass begins where layers start over, a generation where nothing is past.

        Not at layer 0: dense layers of a compiled model do not come here.
        """
        again, self.latest = layer <= self.latest, layer
        if again:
            self.passes += 1
            self.shared.clear()
            if queries == end:
                self.passes = 0
                self.states.clear()
                self.tallies.clear()
        tally = self.tallies.setdefault((layer, self.passes), Tally())
        tally.calls += 1
        return tally

    def count(self, layer: int, queries: int, end: int, reason: str) -> None:
        """Count a dense call."""
        self.begin(layer, queries, end).reasons[reason] += 1

    def forget(self, layer: int) -> None:
        """Drop what a layer keeps: it may be of other keys than those before this call."""
        self.states.pop(layer, None)

    def attend(self, x: QKV, found: Spans, layer: int, scale: float | None) -> Tensor:
        """Run the method on every sample's own tokens; return [B, H, Sq, Dv], 0 for padding."""
        queries = x.q.shape[2]
        tally, first = self.begin(layer, queries, found.end), found.end - queries
        assert found.rows is not None
        groups: dict[tuple[int, int], list[int]] = {}
        for sample, row in enumerate(found.rows):
            groups.setdefault(row, []).append(sample)
        out, densities = None, []
        for (start, stop), samples in groups.items():
            rows = slice(max(start - first, 0), stop - first)
            if rows.stop <= rows.start:
                continue
            own, places = QKV(x.q[:, :, rows], x.k[:, :, start:stop], x.v[:, :, start:stop]), None
            if len(groups) > 1:
                places = constant(tuple(samples), torch.int64, str(x.q.device))
                own = QKV(*(t.index_select(0, places) for t in own))
            part, density = self._run(own, layer, (start, *samples), scale)
            densities.append(density)
            if part.shape[:3] == x.q.shape[:3]:
                out = part
            else:
                out = x.q.new_zeros(*x.q.shape[:3], x.v.shape[3]) if out is None else out
                if places is not None:
                    out[:, :, rows].index_copy_(0, places, part)
                else:
                    out[:, :, rows] = part
        if densities:
            tally.densities.append(torch.stack(densities).mean())
        return x.q.new_zeros(*x.q.shape[:3], x.v.shape[3]) if out is None else out

    def _run(
        self, x: QKV, layer: int, group: tuple[int, ...], scale: float | None
    ) -> tuple[Tensor, Tensor]:
        """Run the method on samples of one length; return the output and the density."""
        state = self.states.setdefault(layer, {}).setdefault(group, {})
        state["layers"] = self.shared.setdefault(group, {})
        call = Context(
            layer=layer,
            step=self.passes,
            steps=self.passes + 1,
            causal=True,
            # layers that are not split hold all heads
            heads=self.heads if self.heads and x.q.shape[1] < self.heads.total else None,
            scale=scale,
            impl=self.impl,
            state=state,
            weights=layer_weights(self.method, layer, x.q.device, "model"),
        )
        outs, densities, pairs, past = [], [], [], x.k.shape[2] - x.q.shape[2]
        for rows, part, own in in_parts(self.method, x, call):
            plan = self.method.plan(part, own)
            outs.append(self.method.compute(part, plan, own))
            counted = own.cache.get("density")
            densities.append(plan.density() if counted is None else counted)
            pairs.append((rows.stop - rows.start) * _middle(rows, past))
            if "kernel" in own.cache:
                name, why = own.cache["kernel"]
                self.implementations[name] = why
        if len(outs) == 1:
            return outs[0], densities[0]
        # a part weighs as many pairs as it sees
        works = [density * count for density, count in zip(densities, pairs, strict=True)]
        return torch.cat(outs[::-1], 2), torch.stack(works).sum() / sum(pairs)

    def cells(self) -> tuple[Cell, ...]:
        """Return what happened in the last generation; reads densities from the device."""
        return tuple(
            tally.cell("model", layer, step)
            for (layer, step), tally in sorted(self.tallies.items())
        )
