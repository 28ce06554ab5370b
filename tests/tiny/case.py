"""What a transformer class needs to be tested: a tiny model, and arguments for its forward."""

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

GRID = (3, 5, 7)
PICTURE = (1, 5, 7)


@dataclass(frozen=True)
class Case:
    """One row of the matrix of models; rows stand in the files beside this one, in `CASES`.

    model: class name. config: of a tiny model. inputs: texts -> keyword arguments of a forward of
    `len(texts)` samples, each with so many valid text tokens, padded to the longest; noise is drawn
    there (a seed was set). grid: frames, height, width in tokens; odd where the class allows it.
    layers: number of self-attention layers. texts: of the two samples; equal where the class takes
    no padding, one where it takes one sample. extra: text -> extra tokens beside the box, or all
    numbers of them that calls have. more: grids of further calls, with their extra tokens. out: the
    tensors of what forward returned that count. others: calls of each layer that are about other
    tokens, and stay dense. name: tells several rows of one class apart. quiet: pattern of a warning
    that is the class's own.
    """

    model: str
    config: dict[str, Any]
    inputs: Callable[[tuple[int, ...]], dict[str, Any]]
    layers: int
    grid: tuple[int, int, int] = GRID
    texts: tuple[int, ...] = (6, 6)
    extra: Callable[[int], int | tuple[int, ...]] = lambda text: 0
    more: tuple[tuple[int, int, int, int], ...] = ()
    out: Callable[[Any], list[torch.Tensor]] = lambda out: [out[0]]
    others: int = 0
    compiles: bool = True
    name: str = ""
    quiet: str = "^$"
    setup: Callable[[Any], None] = field(default=lambda model: None)

    def __str__(self) -> str:
        return self.name or self.model

    def grids(self) -> set[tuple[int, ...]]:
        """Return frames, height, width and extra tokens of all calls."""
        extra = [self.extra(text) for text in self.texts]
        numbers = {n for of in extra for n in (of if isinstance(of, tuple) else (of,))}
        return {*self.more, *((*self.grid, number) for number in numbers)}

    def build(self, **other: Any) -> Any:
        """Return the model, with random weights; other: changes to its configuration."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", self.quiet)
            model = getattr(diffusers, self.model)(**{**self.config, **other}).eval()
        for weight in model.parameters():
            # some classes start at zero, and would hide what attention gives
            torch.nn.init.normal_(weight, std=0.2 if weight.ndim > 1 else 0.02)
        self.setup(model)
        return model

    def run(self, model: Any, alone: int | None = None) -> list[torch.Tensor]:
        """Return the output tensors of one forward: of both samples, or of one alone."""
        torch.manual_seed(1)
        given = self.inputs(self.texts)
        if alone is not None:
            given = {name: self.take(x, alone) for name, x in given.items()}
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", self.quiet)
            return self.out(model(**given, return_dict=False))

    @staticmethod
    def take(x: Any, number: int) -> Any:
        """Return one sample of an argument of both; of each in a tuple or dictionary."""
        if isinstance(x, tuple):
            return tuple(Case.take(part, number) for part in x)
        if isinstance(x, dict):
            return {name: Case.take(part, number) for name, part in x.items()}
        batched = isinstance(x, (torch.Tensor, list)) and len(x) == 2
        return x[number : number + 1] if batched else x


def latents(texts: tuple[int, ...], channels: int = 4) -> torch.Tensor:
    """Return noise of a picture for each sample, in patches of two."""
    return torch.randn(len(texts), channels, 2 * PICTURE[1], 2 * PICTURE[2])


def tokens(texts: tuple[int, ...], count: int = PICTURE[1] * PICTURE[2], dim: int = 4) -> Any:
    """Return noise of so many tokens for each sample."""
    return torch.randn(len(texts), count, dim)


def words(texts: tuple[int, ...], dim: int = 16) -> torch.Tensor:
    """Return text of the longest sample's length for each."""
    return torch.randn(len(texts), max(texts), dim)


def mask(texts: tuple[int, ...]) -> torch.Tensor:
    """Return bool [B, longest], True where a sample has text."""
    return torch.arange(max(texts)) < torch.tensor(texts)[:, None]


def positions(frame: int = 0, size: tuple[int, int] = PICTURE[1:]) -> torch.Tensor:
    """Return (frame, row, column) of every token of a picture, float [S, 3]."""
    axes = (torch.arange(n) for n in (1, *size))
    return torch.cartesian_prod(*axes).float() + torch.tensor([float(frame), 0.0, 0.0])


def cases() -> list[Case]:
    """Return the rows of all files beside this one."""
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "case")
    return [row for n in names for row in importlib.import_module(f"tests.tiny.{n}").CASES]
