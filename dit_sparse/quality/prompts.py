"""What is generated when nobody names prompts: the built-in model's held-out ones, or general ones.

The general prompts are our own: still and fast scenes, people, text, close and wide views.
"""

from __future__ import annotations

from pathlib import Path

from dit_sparse.errors import ArgumentError

GENERAL = (
    "a cat on a skateboard rolls down a quiet street in the morning",
    "waves break on black rocks under a grey sky, seen from above",
    "a potter shapes a bowl of wet clay on a spinning wheel, close up",
    "a red kite climbs against white clouds while the wind pulls its tail",
    "snow falls on an empty railway station at night",
    "a chef tosses vegetables in a pan over a high flame",
    "a hummingbird hovers in front of a purple flower",
    "a shop window with the words OPEN ALL NIGHT in blue neon, rain running down the glass",
    "a steam train crosses a stone bridge in an autumn forest",
    "an old man laughs and takes off his glasses, portrait",
    "a busy crossing in a large city, people with umbrellas, time lapse",
    "a glass of milk falls from a table and breaks, slow motion",
    "a field of sunflowers turns in the wind at sunset",
    "two children build a castle of sand, and the sea takes it",
    "an astronaut walks across a red desert towards a round white tent",
    "a still life of fruit, bread and a candle that burns down",
)


def general(count: int) -> list[str]:
    """Return the first `count` general prompts."""
    if count > len(GENERAL):
        raise ArgumentError(
            f"--count {count}: there are {len(GENERAL)} built-in prompts for this model; "
            "give more in a file by --prompts FILE"
        )
    return list(GENERAL[:count])


def read(path: Path) -> list[str]:
    """Return the prompts of a text file: one a line; empty lines and lines after # are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--prompts {path} cannot be read: {error}") from None
    prompts = [line.strip() for line in lines]
    prompts = list(dict.fromkeys(p for p in prompts if p and not p.startswith("#")))
    if not prompts:
        raise ArgumentError(f"--prompts {path} holds no prompt; write one a line")
    return prompts
