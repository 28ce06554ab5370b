"""The texts of the built-in language model `needle`: filler, what is hidden in it, questions.

A document is sentences in random order: filler about a few favourite words of its own, and needles.

    code : Lavo davu .                recall   question : code : Lavo ... davu .
    the pass key is 07 81 22 93 40 .  passkey  question : the pass key is ... 07 81 22 93 40 .
    road : Lusi Paga .                roads    question : road : Lusi ... Paga Faka Refi Rile .

A road has four legs at four places, each the way to the next: to answer is to look up four needles
one after the other. Every text of a batch has the same number of tokens to the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle, product

import torch
from torch import Tensor

from dit_sparse.errors import ArgumentError


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TASKS = ("recall", "passkey", "roads")
SPECIAL = ("<pad>", "<s>", "<unk>")
MARKS = (".", ":", "the", "a", "is", "code", "pass", "key", "road", "question")
ADJECTIVES = _list(
    "quiet small old green cold bright heavy narrow early distant gentle wooden hollow golden "
    "silver broken hidden frozen open empty wide deep round soft sharp dusty noisy plain tall young"
)
NOUNS = _list(
    "river stone garden tower bridge forest lantern harbour mountain village market window kettle "
    "farmer sailor teacher painter child wolf raven horse letter basket mirror engine wagon clock "
    "candle field island valley cellar orchard meadow chimney hammer ladder blanket feather bottle"
)
VERBS = _list(
    "carries follows watches covers finds leaves paints builds moves holds opens lifts guards "
    "meets hears draws turns crosses keeps calls"
)
ADVERBS = _list(
    "slowly often again today quickly softly never always nearby alone early twice outside "
    "upwards gladly later"
)
NUMBERS = tuple(f"{n:02d}" for n in range(100))
_SYLLABLES = tuple(a + b for a, b in product("bdfgklmnprstvz", "aeiou"))
LEGS, DIGITS = 4, 5
# tokens that a needle of each kind takes, and a question with its answer
RECALL, KEY, LEG = 5, 10, 5
ASKED = {"recall": 7, "passkey": 12, "roads": 10}
# of these, what is looked up, and what stands before the answer
SOUGHT = {"recall": (5,), "passkey": (6, 7, 8, 9, 10), "roads": (5, 6, 7, 8)}
WIDTH = 12
_MARKS = {
    task: [TASKS.index(task) + 1 if place in SOUGHT[task] else -1 for place in range(WIDTH)]
    for task in TASKS
}
FAVOURITES, FAITHFUL = 6, 0.8


def _names(count: int, offset: int) -> tuple[str, ...]:
    """Return different words of two syllables, the same ones always."""
    size = len(_SYLLABLES)
    # a step without a common divisor meets every pair once
    pairs = [divmod((offset + n * 1093) % size**2, size) for n in range(count)]
    return tuple(_SYLLABLES[a] + _SYLLABLES[b] for a, b in pairs)


NAMES = tuple(name.capitalize() for name in _names(512, 0))
CODES = _names(256, 17)
VOCABULARY = (
    *SPECIAL, *MARKS, *ADJECTIVES, *NOUNS, *VERBS, *(a for a in ADVERBS if a not in ADJECTIVES),
    *NUMBERS, *NAMES, *CODES,
)  # fmt: skip
ID = {word: number for number, word in enumerate(VOCABULARY)}
# slots of filler sentences, by their length
_SLOTS = (ADJECTIVES, NOUNS, VERBS, ADJECTIVES, NOUNS, ADVERBS)
_FILLER = {
    4: "the 1 2 .", 5: "the 1 2 5 .", 6: "the 0 1 2 5 .", 7: "the 1 2 the 3 4 .",
    8: "the 0 1 2 a 3 4 .",
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """How much is hidden in a text, and how much is asked at its end.

    codes, roads: needles beside the one pass key. asked: questions of each task.
    """

    codes: int
    roads: int
    asked: dict[str, int]

    @property
    def tokens(self) -> int:
        """Tokens of needles and questions."""
        hidden = self.codes * RECALL + self.roads * LEGS * LEG + KEY
        return hidden + sum(ASKED[task] * n for task, n in self.asked.items())

    @classmethod
    def usual(cls, length: int, asked: dict[str, int] | None = None) -> Counts:
        """Return what a text of so many tokens hides in evaluations."""
        return cls(max(8, min(length // 128, 128)), max(2, min(length // 2048, 8)), asked or {})


@dataclass(frozen=True)
class Texts:
    """tokens: [B, S]. sought: [B, S], n where a token is looked up for the n-th task of `TASKS`.

    Other tokens have 0 in filler, and -1 elsewhere.
    """

    tokens: Tensor
    sought: Tensor


def texts(batch: int, length: int, counts: Counts, generator: torch.Generator) -> Texts:
    """Return texts of exactly `length` tokens: <s>, a document, questions with their answers.

    generator: on the device of the result. Raises where the needles leave no room.
    """
    rest = length - 1 - counts.tokens
    names = counts.codes + counts.roads * (LEGS + 1)
    if rest < 16 or names > len(NAMES):
        raise ArgumentError(
            f"length={length!r} is too short for {counts.codes} codes and {counts.roads} roads; "
            f"it needs {counts.tokens + 17}, and there are {len(NAMES)} names"
        )
    hidden = {"recall": counts.codes, "passkey": 1, "roads": counts.roads}
    for task, number in counts.asked.items():
        if number > hidden[task]:
            raise ArgumentError(f"asked: {number} of {task}, but the text has {hidden[task]}")
    draw = _Draw(batch, generator)
    name, code = draw.different(NAMES, names), draw.any(CODES, counts.codes)
    key = draw.different(NUMBERS, DIGITS)[:, None]
    road = name[:, counts.codes :].unflatten(1, (counts.roads, LEGS + 1))
    filler, sizes = draw.filler(rest)
    body = [
        draw.say("code : {} {} .", name[:, : counts.codes], code),
        draw.say("the pass key is {} {} {} {} {} .", *key.unbind(2)),
        draw.say("road : {} {} .", road[:, :, :-1].flatten(1), road[:, :, 1:].flatten(1)),
        filler,
    ]
    sizes = [RECALL] * counts.codes + [KEY] + [LEG] * LEGS * counts.roads + sizes
    recall, passkey, roads = (counts.asked.get(task, 0) for task in TASKS)
    asked = [
        draw.say("question : code : {} {} .", name[:, :recall], code[:, :recall]),
        draw.say("question : the pass key is {} {} {} {} {} .", *key.unbind(2))[:, :passkey],
        draw.say("question : road : {} {} {} {} {} .", *road[:, :roads].unbind(2)),
    ]
    kinds = [task for task in TASKS for _ in range(counts.asked.get(task, 0))]
    asked_sizes, shape = [ASKED[kind] for kind in kinds], (batch, -1, -1)
    marks = torch.tensor([_MARKS[kind] for kind in kinds], dtype=torch.long, device=draw.device)
    # needles first, then filler
    plain = torch.zeros(len(sizes), WIDTH, dtype=torch.long, device=draw.device)
    plain[: len(sizes) - filler.shape[1]] = -1
    document, order = draw.lay(torch.cat(body, 1), sizes)
    below = draw.pack(plain.expand(shape), sizes, order)
    questions, order = draw.lay(torch.cat(asked, 1), asked_sizes)
    above = draw.pack(marks.reshape(-1, WIDTH).expand(shape), asked_sizes, order)
    first = torch.full((batch, 1), ID["<s>"], device=draw.device)
    return Texts(
        torch.cat((first, document, questions), 1), torch.cat((0 * first - 1, below, above), 1)
    )


def prompts(batch: int, length: int, task: str, seed: int) -> tuple[Tensor, Tensor, int]:
    """Return prompts [B, length] that end where the answer begins, answers [B, A], question's size.

    Answers hold all tokens up to the full stop, which is left out. On the CPU.
    """
    if task not in TASKS:
        raise ArgumentError(f"task={task!r} is not known; use {', '.join(TASKS)}")
    before = SOUGHT[task][0]
    after = ASKED[task] - before
    generator = torch.Generator().manual_seed(seed)
    found = texts(batch, length + after, Counts.usual(length, {task: 1}), generator).tokens
    return found[:, :length], found[:, length:-1], before


def words(tokens: Tensor) -> str:
    """Return tokens [S] as text."""
    return " ".join(VOCABULARY[n] for n in tokens.tolist())


class _Draw:
    """Random words and sentences of a batch of texts."""

    def __init__(self, batch: int, generator: torch.Generator) -> None:
        self.batch, self.generator, self.device = batch, generator, generator.device

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.batch, *shape, generator=self.generator, device=self.device)

    def different(self, words: tuple[str, ...], count: int) -> Tensor:
        """Return tokens [B, count] of words, none twice in a text."""
        return self._ids(words)[self.uniform(len(words)).argsort(1)[:, :count]]

    def any(self, words: tuple[str, ...], count: int) -> Tensor:
        """Return tokens [B, count] of words."""
        return self._ids(words)[(self.uniform(count) * len(words)).long()]

    def say(self, sentence: str, *slots: Tensor) -> Tensor:
        """Return sentences [B, n, WIDTH], padded; slots: [B, n] tokens for each {}."""
        given, count = iter(slots), slots[0].shape[1]
        parts = [
            next(given) if word == "{}" else torch.full_like(slots[0], ID[word])
            for word in sentence.split()
        ]
        parts += [slots[0].new_zeros(self.batch, count)] * (WIDTH - len(parts))
        return torch.stack(parts, 2)

    def filler(self, total: int) -> tuple[Tensor, list[int]]:
        """Return sentences [B, n, WIDTH] of `total` tokens, and the length of each."""
        sizes = list(_sizes(total))
        columns = []
        for words in _SLOTS:
            own = self.different(words, FAVOURITES)
            pick = (self.uniform(len(sizes)) * FAVOURITES).long()
            faithful = self.uniform(len(sizes)) < FAITHFUL
            columns.append(torch.where(faithful, own.gather(1, pick), self.any(words, len(sizes))))
        drawn = torch.stack(columns, 2)
        rows = torch.tensor(sizes, device=self.device)
        fixed, slot = (t[rows].expand(self.batch, -1, -1) for t in _templates(str(self.device)))
        return torch.where(slot >= 0, drawn.gather(2, slot.clamp(min=0)), fixed), sizes

    def lay(self, sentences: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Return tokens [B, S] of sentences [B, n, WIDTH] in random order, and the order."""
        order = self.uniform(len(sizes)).argsort(1)
        return self.pack(sentences, sizes, order), order

    def pack(self, sentences: Tensor, sizes: list[int], order: Tensor) -> Tensor:
        """Return tokens [B, S] of sentences [B, n, WIDTH] in the order [B, n], without padding."""
        size = torch.tensor(sizes, dtype=torch.long, device=self.device)[order]
        moved = sentences.gather(1, order[:, :, None].expand(-1, -1, WIDTH))
        start = size.cumsum(1) - size
        place = start[:, :, None] + torch.arange(WIDTH, device=self.device)
        real = torch.arange(WIDTH, device=self.device) < size[:, :, None]
        # padding goes to one place behind all, which is cut off
        place = torch.where(real, place, sum(sizes))
        out = moved.new_zeros(self.batch, sum(sizes) + 1)
        return out.scatter_(1, place.flatten(1), moved.flatten(1))[:, :-1]

    def _ids(self, words: tuple[str, ...]) -> Tensor:
        return _tokens(words, str(self.device))


@lru_cache(maxsize=32)
def _tokens(words: tuple[str, ...], device: str) -> Tensor:
    """Return words as tokens on a device."""
    return torch.tensor([ID[word] for word in words], device=device)


@lru_cache(maxsize=4)
def _templates(device: str) -> tuple[Tensor, Tensor]:
    """Return the tokens and the slots (-1: none) of filler sentences, [length, WIDTH]."""
    fixed = torch.zeros(max(_FILLER) + 1, WIDTH, dtype=torch.long)
    slot = torch.full_like(fixed, -1)
    for size, sentence in _FILLER.items():
        for place, word in enumerate(sentence.split()):
            if word.isdigit():
                slot[size, place] = int(word)
            else:
                fixed[size, place] = ID[word]
    return fixed.to(device), slot.to(device)


def _sizes(total: int) -> Iterator[int]:
    """Yield lengths of filler sentences, in turn, that sum to total (8 or more)."""
    for size in cycle((8, 6, 7, 5)):
        if total <= 16:
            break
        total -= size
        yield size
    if total > 8:
        yield total - total // 2
        total //= 2
    yield total
