"""Captions as token ids, made on the device from attribute ids, with the noise a user's wording
has.
"""

import torch
from torch import Tensor

from dit_sparse.world import COLOURS, MOTIONS, NAMES, PATTERNS, SHAPES, SIZES, VOCABULARY

PAD, END, UNKNOWN = 0, 1, 2
SPECIAL = ("<pad>", "</s>", "<unk>")
WORDS = (*SPECIAL, *VOCABULARY)
ROLES = ("filler", "size", "colour", "shape", "motion", "pattern", "background", "end")
_ID = {word: i for i, word in enumerate(WORDS)}
_NONE = -1
LENGTH = 15  # the longest caption has 12 tokens


def _table(names: tuple[str, ...] | list[str]) -> Tensor:
    return torch.tensor([_ID[n] if n else _NONE for n in names])


def _pairs(names: list[str]) -> Tensor:
    return torch.tensor(
        [[_ID[w] for w in n.split()] + [_NONE] * (2 - len(n.split())) for n in names]
    )


_TABLES = {
    "size": _table(list(SIZES)),
    "colour": _table(list(COLOURS)),
    "an": torch.tensor([_ID["an" if c[0] in "aeiou" else "a"] for c in COLOURS]),
    "shape": _table(SHAPES),
    "motion": torch.stack([_pairs(list(MOTIONS)), _pairs(list(MOTIONS.values()))]),
    "pattern": _table(PATTERNS),
}


def tokens(
    ids: Tensor, generator: torch.Generator, *, noise: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Word scenes: 15 % -ing form, 5 % no motion, 7 % no background, 3 % no pattern, 10 % "on", 4
    % unknown filler.

    ids: [B, 6] -> tokens [B, 15], their roles [B, 15] (-1 behind the end), spoken [B, 6] bool
    (what the caption says)
    """
    device, n = ids.device, len(ids)
    size, colour, shape, motion, pattern, ground = ids.unbind(1)
    table = {key: value.to(device) for key, value in _TABLES.items()}
    chance = (
        torch.rand(n, 8, generator=generator, device=device)
        if noise
        else torch.ones(n, 8, device=device)
    )
    a = torch.full((n,), _ID["a"], device=device)
    moves = table["motion"][(chance[:, 0] < 0.15).long(), motion]
    # slot order is caption order; absent words are -1 and closed up below
    slots = torch.stack(
        [
            torch.where(size == 1, table["an"][colour], a),
            table["size"][size],
            table["colour"][colour],
            table["shape"][shape],
            moves[:, 0],
            moves[:, 1],
            torch.where(chance[:, 1] < 0.10, a * 0 + _ID["on"], a * 0 + _ID["over"]),
            a,
            table["pattern"][pattern],
            table["colour"][ground],
            a * 0 + _ID["background"],
            a * 0 + END,
        ],
        1,
    )
    role = torch.tensor([0, 1, 2, 3, 4, 4, 0, 0, 5, 6, 0, 7], device=device).expand_as(slots)
    no_motion, no_ground, no_pattern = chance[:, 2] < 0.05, chance[:, 3] < 0.07, chance[:, 4] < 0.03
    gone = slots == _NONE
    gone[:, 4:6] |= no_motion[:, None]
    gone[:, 6:11] |= no_ground[:, None]
    gone[:, 8] |= no_pattern
    strange = (chance[:, 5:6] < 0.04) & (role == 0)
    slots = torch.where(strange, torch.full_like(slots, UNKNOWN), slots)
    order = gone.to(torch.int8).argsort(dim=1, stable=True)
    slots = slots.gather(1, order).masked_fill(gone.gather(1, order), PAD)
    role = role.gather(1, order).masked_fill(gone.gather(1, order), -1)
    fill = slots.new_zeros(n, LENGTH - slots.shape[1])
    yes = torch.ones_like(no_motion)
    spoken = torch.stack([yes, yes, yes, ~no_motion, ~(no_ground | no_pattern), ~no_ground], 1)
    return torch.cat([slots, fill], 1), torch.cat([role, fill - 1], 1), spoken


def attributes() -> list[int]:
    """Return the number of names of each of the six attributes."""
    return [len(names) for names in NAMES]
