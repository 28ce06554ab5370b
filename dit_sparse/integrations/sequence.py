"""How the tokens of a self-attention call stand: the box of the grid, extra tokens, padding."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dit_sparse.core import Grid

# number of extra tokens at one end, where it is whatever a call has left: behind the box as Mochi
# cuts its padding before it attends, before it as Lumina 2 has text of any length in front
REST = -1
# an additive mask hides a key with a value below this
HIDDEN = -1e3


@dataclass(frozen=True)
class Sequence:
    """A box of frames x height x width tokens, with extra ones (text, history) at either end.

    packed: padding is behind everything, so that the box of a sample begins where its own extra
    tokens end, and `before` is that of the longest.
    """

    frames: int
    height: int
    width: int
    before: int = 0
    after: int = 0
    packed: bool = False

    @property
    def box(self) -> int:
        """Number of tokens in the box."""
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return self.before + self.box + self.after

    def of(self, keys: int, calls: Collection[str] = ()) -> Sequence:
        """Return the sequence with its open end set by the number of keys of a call.

        calls: which others there are, as in `Adapter`: one with as many keys as the box has tokens,
        or twice as many, is about the "box" alone, or about "two boxes".
        """
        for name, boxes in (("box", 1), ("two boxes", 2)):
            if name in calls and keys == boxes * self.box:
                return replace(self, frames=boxes * self.frames, before=0, after=0)
        if self.before == REST:
            return replace(self, before=max(keys - self.box - self.after, 0), packed=True)
        if self.after == REST:
            return replace(self, after=max(keys - self.before - self.box, 0))
        return self

    def why_not(self, queries: int, keys: int, masked: bool = False) -> str:
        """Return why a call of these lengths is not about this sequence, "" when it is.

        Queries may be those of the box and what is behind it (PRX, Cosmos 3: text has keys, but no
        queries), of the box alone, or of the box and some of the extra tokens at its only end
        (FLUX.2 and GLM keep keys of others).
        """
        if not self.box:
            return "the tokens form no single box of frames x rows x columns"
        some = self.box < queries < self.tokens and not ((self.before and self.after) or masked)
        behind = queries in (self.box, self.tokens - self.before) and not self.packed
        known = some or behind or queries == self.tokens
        if keys != self.tokens or not known:
            return f"q has {queries} tokens, k {keys}, the grid {self.tokens}"
        return ""

    def spread(self, q: Tensor) -> Tensor:
        """Return q [B, s, H, D] with a query for every token; those it lacks are zero.

        Where extra queries are put does not matter: all extra tokens attend to everything.
        """
        if q.shape[1] == self.tokens:
            return q
        lead = self._lead(q.shape[1])
        head, tail = q[:, :lead], q[:, lead:]
        gap = q.new_zeros(q.shape[0], self.before - lead, *q.shape[2:])
        end = q.new_zeros(q.shape[0], self.tokens - self.before - tail.shape[1], *q.shape[2:])
        return torch.cat([head, gap, tail, end], dim=1)

    def collect(self, out: Tensor, queries: int) -> Tensor:
        """Return the tokens of out [B, S, H, D] whose queries `spread` was given."""
        if queries == self.tokens:
            return out
        lead = self._lead(queries)
        tail = out[:, self.before : self.before + queries - lead]
        return torch.cat([out[:, :lead], tail], dim=1)

    def _lead(self, queries: int) -> int:
        """Return how many queries stand before those of the box."""
        return 0 if self.after else queries - self.box

    def grid(self) -> Grid:
        """Return the grid of the tokens as they stand; only one end may have extra ones."""
        extra = self.before + self.after
        return Grid(self.frames, self.height, self.width, extra, text_first=self.before > 0)


@dataclass(frozen=True, eq=False)
class Group:
    """Samples of a batch whose valid tokens are the same ones.

    samples: their places. tokens: which tokens of the call they attend with, in the order of
    `grid`; a slice where these are neighbours, and nothing is copied then.
    """

    samples: slice
    tokens: slice | Tensor
    grid: Grid

    def take(self, x: Tensor) -> Tensor:
        """Return [b, s, H, D] of x [B, S, H, D]."""
        x = x[self.samples]
        if isinstance(self.tokens, slice):
            return x[:, self.tokens]
        return x.index_select(1, self.tokens)

    def put(self, out: Tensor, x: Tensor) -> None:
        """Write x [b, s, H, D] to its places in out [B, S, H, D]."""
        if isinstance(self.tokens, slice):
            out[self.samples, self.tokens] = x
        else:
            out[self.samples].index_copy_(1, self.tokens, x)


def apart(
    groups: tuple[Group, ...], q: Tensor, k: Tensor, v: Tensor, attend: Callable[..., Tensor]
) -> Tensor:
    """Attend group by group and return out [B, S, H, Dv], which is 0 at tokens of no group.

    attend: (q, k, v, group, its number) -> out of one group; q, k, v [B, S, H, D].
    """
    out = None
    for number, group in enumerate(groups):
        found = attend(*(group.take(t) for t in (q, k, v)), group, number)
        if found.shape[:2] == q.shape[:2] and isinstance(group.tokens, slice):
            return found
        out = q.new_zeros(*q.shape[:3], v.shape[3]) if out is None else out
        group.put(out, found)
    assert out is not None
    return out


def valid_tokens(mask: Tensor, kind: str, at: int = 0) -> Tensor | None:
    """Return which tokens a mask leaves, bool [B, S] on the CPU; None when it says more than that.

    mask: of keys, [B, S], [B, 1, S] or [B, 1, 1, S]; of kind "pairs" or "flags" [B, 1, S, S], where
    a pair is left when both of its tokens are, or both of the same segment: the row of a token of
    the box, `at`, then tells. bool, or added to the logits; "flags" may also be 1 and 0.
    """
    if kind in ("pairs", "flags"):
        if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2] != mask.shape[3]:
            return None
        mask = mask[:, 0, at]
    for axis in range(1, mask.ndim - 1):
        # Lumina-Next repeats the mask of keys for every head and query
        mask = mask if mask.stride(axis) else mask.narrow(axis, 0, 1)
    if any(n != 1 for n in mask.shape[1:-1]):
        return None
    mask = mask.reshape(mask.shape[0], mask.shape[-1]).cpu()
    if kind == "flags" and bool(((mask == 0) | (mask == 1)).all()):
        return mask == 1
    if mask.dtype == torch.bool:
        return mask
    hidden = mask < HIDDEN
    return ~hidden if not bool(mask[~hidden].any()) else None


def groups(of: Sequence, valid: Tensor | None, device: torch.device) -> tuple[Group, ...] | str:
    """Return the groups of a batch, or why there are none.

    valid: bool [B, S] on the CPU or None. Extra tokens go behind the box unless they stand there or
    before it anyway.
    """
    if valid is None or bool(valid.all()):
        if not (of.before and of.after):
            return (Group(slice(None), slice(None), of.grid()),)
        valid = torch.ones(1, of.tokens, dtype=torch.bool)
    if bool((valid == valid[:1]).all()):
        valid = valid[:1]
    found = [_group(of, row, number, len(valid), device) for number, row in enumerate(valid)]
    odd = [group for group in found if isinstance(group, str)]
    return odd[0] if odd else tuple(group for group in found if not isinstance(group, str))


def _group(of: Sequence, row: Tensor, number: int, rows: int, device: torch.device) -> Group | str:
    """Return the group of sample `number`, or of all where `rows` is 1; row: bool [S]."""
    start = int(row.sum()) - of.box - of.after if of.packed else of.before
    box = torch.arange(start, start + of.box)
    if start < 0 or not bool(row[box].all()):
        return "padding among the tokens of the grid"
    extra = row.clone()
    extra[box] = False
    tokens: Tensor | slice = torch.cat([box, extra.nonzero()[:, 0]])
    first, count = int(tokens[0]), len(tokens)
    if torch.equal(tokens, torch.arange(first, first + count)):
        tokens = slice(first, first + count)
    else:
        tokens = tokens.to(device)
    samples = slice(None) if rows == 1 else slice(number, number + 1)
    return Group(samples, tokens, Grid(of.frames, of.height, of.width, count - of.box))
