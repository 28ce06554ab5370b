"""What a head may get: registered methods with settings, one letter each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dit_sparse.core import Method
from dit_sparse.errors import ArgumentError
from dit_sparse.mixed import is_dense
from dit_sparse.registry import get

# dense comes first: what each is measured against, and what a head gets that bears nothing else
DENSE = "D dense"
# few, for each costs a call of the model for every layer and part: one that puts something in the
# place of what it drops, in three widths; one that drops; two shapes that need no choice of blocks,
# around a token in its frames and through time; and nothing at all
DEFAULT = (
    DENSE,
    "a pisa keep=0.0625",
    "b pisa keep=0.125",
    "c pisa keep=0.25",
    "g svg keep=0.125",
    "d sparse_vdit table=D",
    "m sparse_vdit table=M",
    "s sparse_vdit table=S",
)
# the modes of Sparse-vDiT: full, skip, diagonal, multi-diagonal, stripes
PAPER = (
    "F dense",
    "S sparse_vdit table=S",
    "D sparse_vdit table=D",
    "M sparse_vdit table=M",
    "V sparse_vdit table=V",
)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCEFGHIJKLMNOPQRSTUVWXYZ"
MOST = 24


@dataclass(frozen=True)
class Candidate:
    """A letter, the text that a profile has for it, and its method."""

    letter: str
    text: str
    method: Method


def candidates(texts: Iterable[str]) -> tuple[Candidate, ...]:
    """Return the candidates of texts such as "a pisa keep=0.25"; the first must be dense."""
    found = []
    for text in texts:
        # a value of the mixed method: what it cannot read can be in no profile
        mixed: Any = get("mixed", letters=(text,), table=text[:1])
        ((letter, method, _),) = mixed.arrange.heads.methods
        found.append(Candidate(letter, text, method))
    letters = [c.letter for c in found]
    if not 2 <= len(found) <= MOST or len(set(letters)) < len(letters):
        raise ArgumentError(f"candidates: {letters} must be 2 to {MOST} different letters")
    if not is_dense(found[0].method):
        raise ArgumentError(f"candidates: the first is {found[0].text!r}; it must be dense")
    return tuple(found)


def lettered(texts: Iterable[str]) -> tuple[str, ...]:
    """Give texts such as "pisa keep=0.25" letters, behind dense."""
    texts = list(texts)
    if len(texts) >= MOST:
        raise ArgumentError(f"--candidate: {len(texts)} were given; {MOST - 1} are the most")
    return (DENSE, *(f"{c} {text}" for c, text in zip(LETTERS, texts, strict=False)))
