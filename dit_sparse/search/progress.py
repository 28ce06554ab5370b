"""How far a search is, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Tell = Callable[[int, int, str], None]


@dataclass
class Progress:
    """Counts what is done; work is in dense generations.

    tell: hears of each thing done, with the number of them and what it was.
    """

    tell: Tell
    done: int = 0
    total: int = 0
    work: float = 0.0
    whole: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    def expect(self, *works: tuple[int, float]) -> None:
        """Say what is to come: how many things of how much work each."""
        self.total = self.done + sum(count for count, _ in works)
        self.whole = self.work + sum(count * work for count, work in works)

    def did(self, work: float, note: str) -> None:
        """Count one thing, and tell."""
        self.done, self.work = self.done + 1, self.work + work
        self.total, self.whole = max(self.total, self.done), max(self.whole, self.work)
        left = (self.whole / self.work - 1) * (time.monotonic() - self.begun)
        self.tell(self.done, self.total, f"{note}  about {left / 60:.0f} min left")
