"""What the token axis means, and how it is ordered and cut into blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from itertools import accumulate
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from dit_sparse.errors import ArgumentError

P = ParamSpec("P")
T = TypeVar("T")
# a row of a table: an entry per head, a letter or a longer one
Row = TypeVar("Row", str, tuple[str, ...], tuple[float, ...])

# blocks of which one hardly counts
MANY = 256


@dataclass(frozen=True)
class Grid:
    """What the token axis means: frames x height x width video tokens plus joint text tokens.

    text: number of text tokens in the joint sequence (0 when text has its own cross-attention);
    text_first: True when they stand before the video tokens.
    """

    frames: int
    height: int
    width: int
    text: int = 0
    text_first: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"Grid: {name}={getattr(self, name)} must be at least 1")
        if self.text < 0:
            raise ArgumentError(f"Grid: text={self.text} must not be negative")

    @property
    def sides(self) -> tuple[int, int, int]:
        """Frames, height and width."""
        return self.frames, self.height, self.width

    @property
    def video(self) -> int:
        """Number of video tokens."""
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return self.video + self.text

    def boxes(
        self, parts: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> tuple[int, Tensor, Tensor | None]:
        """Cut each side into so many nearly equal parts, the video into boxes, raster inside.

        Return what `Blocks.with_text` takes: the tokens of the largest box; the video tokens box by
        box, [video] int64; and where each box ends, [boxes] int32, None when all are equal.
        """
        # part i of a side holds the positions p with p * parts // side == i
        part = [torch.arange(s) * n // s for s, n in zip(self.sides, parts, strict=True)]
        t, h, w = torch.meshgrid(*part, indexing="ij")
        box = ((t * parts[1] + h) * parts[2] + w).flatten()
        order, ends = torch.argsort(box, stable=True).to(device), None
        # plain numbers, not tensors: a compiler can trace them, and no device is waited for
        t, h, w = (
            [-(-(i + 1) * s // n) + (-i * s // n) for i in range(n)]
            for s, n in zip(self.sides, parts, strict=True)
        )
        sizes = [a * b * c for a in t for b in h for c in w]
        if len(set(sizes)) > 1:
            ends = torch.tensor(list(accumulate(sizes)), dtype=torch.int32, device=device)
        return max(sizes), order, ends


@dataclass(frozen=True)
class Heads:
    """Heads of a model that a process holds: `first` and those after it, of `total`."""

    first: int
    total: int


def layer_row(rows: Row | Sequence[Row], layer: int, heads: int | None, of: str, each: str) -> Row:
    """Return a layer's row of a table, one entry per head; raise unless there is one.

    rows: one per layer; or one string, which serves every layer and is repeated over the heads.
    heads: of the model, None for any number. of, each: what the table and an entry are called.
    """
    row: Any = rows
    if isinstance(rows, str):
        return (row * -(-(heads or len(rows)) // len(rows)))[:heads]
    if layer >= len(rows):
        raise ArgumentError(
            f"{of} has {len(rows)} layers; layer {layer} is beyond its last, {len(rows) - 1} "
            "(counted from 0)"
        )
    row = rows[layer]
    if heads is not None and len(row) != heads:
        raise ArgumentError(
            f"{of}: layer {layer} has {len(row)} {each}s, the model {heads} heads; write one "
            f"{each} per head"
        )
    return row


class QKV(NamedTuple):
    """The tensors of one attention call: q [B, H, Sq, D], k and v [B, Hkv, Skv, D]."""

    q: Tensor
    k: Tensor
    v: Tensor


def on_device(call: Callable[P, T]) -> Callable[P, T]:
    """Run a method (self, x: QKV, ...) on the device of x: kernels start on the current one."""

    @wraps(call)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        q = next(x.q for x in (*args, *kwargs.values()) if isinstance(x, QKV))
        # a compiler does this itself, and could not trace it
        if not q.is_cuda or torch.compiler.is_compiling():
            return call(*args, **kwargs)
        with torch.cuda.device_of(q):
            return call(*args, **kwargs)

    return run


@dataclass(frozen=True, eq=False)
class Blocks:
    """A permutation of the token axis and its cut into blocks.

    order: [B|1, H|1, S] int64, the token at each arranged position; None keeps the given order.
    size: tokens of the largest block. offsets: [B|1, H|1, M+1] int32 where each block starts;
    None when every block but the last holds exactly `size` tokens.
    text_blocks: number of blocks at the end that hold the joint text, `text_tokens` in all: among
    them, perhaps, a few of the video that fill no block of their own (see `with_text`).
    """

    length: int
    size: int
    count: int
    order: Tensor | None = None
    offsets: Tensor | None = None
    text_blocks: int = 0
    text_tokens: int = 0

    @classmethod
    def uniform(cls, length: int, size: int, order: Tensor | None = None) -> Blocks:
        """Cut `length` tokens into blocks of `size`; the last may be shorter."""
        size = min(size, length)
        return cls(length, size, -(-length // size), order)

    @classmethod
    def with_text(
        cls,
        grid: Grid,
        size: int,
        order: Tensor | None = None,
        ends: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Blocks:
        """Put the text of a joint sequence behind the video, in blocks of its own.

        Of MANY equal blocks, the last tokens of a video that they do not divide stand in the
        text's first block: kernels run equal blocks fastest, and one more that is always exact
        changes next to nothing.

        order: [video] the arranged video tokens, counted from 0, or one order per batch element
        and head, [B|1, H|1, video]; None keeps the raster order.
        ends: [Mv] or [B|1, H|1, Mv] int32 where each video block ends; None cuts every `size`
        tokens.
        """
        video = _spread(torch.arange(grid.video, device=device) if order is None else order)
        text = torch.arange(grid.text, device=device).expand(*video.shape[:2], -1)
        if grid.text and grid.text_first:
            order = torch.cat([video + grid.text, text], -1)
        elif order is not None:
            order = torch.cat([video, text + grid.video], -1)
        rest = grid.video % size if grid.text else 0
        if ends is None and (not rest or grid.video >= MANY * size):
            count, behind = -(-grid.tokens // size), grid.text + rest
            return cls(grid.tokens, size, count, order, None, -(-behind // size), behind)
        if ends is None:
            ends = _bounds(grid.video, size, device)[1:]
        ends, tail = _spread(ends), _bounds(grid.text, size, device)[1:] + grid.video
        tail = tail.expand(*ends.shape[:2], -1)
        offsets = torch.cat([torch.zeros_like(ends[..., :1]), ends, tail], -1)
        count, text_blocks = offsets.shape[-1] - 1, tail.shape[-1]
        return cls(grid.tokens, size, count, order, offsets, text_blocks, grid.text)

    @property
    def video(self) -> int:
        """Number of blocks that hold video tokens."""
        return self.count - self.text_blocks

    @property
    def video_tokens(self) -> int:
        """Number of tokens in video blocks; they come first in the arranged order."""
        return self.length - self.text_tokens

    def bounds(self, device: torch.device | str = "cpu", heads: int = 1) -> Tensor:
        """Return the offsets [B|1, H|1, M+1] int32, whatever the form of the cut.

        heads: the number of query heads; each cut of a key head is repeated for its group.
        """
        if self.offsets is not None:
            group = heads // self.offsets.shape[1] if self.offsets.shape[1] > 1 else 1
            return self.offsets.repeat_interleave(group, 1) if group > 1 else self.offsets
        return _bounds(self.length, self.size, device)[None, None]

    def sizes(self, device: torch.device | str = "cpu", heads: int = 1) -> Tensor:
        """Return the number of tokens of each block, [B|1, H|1, M] int32; heads as in `bounds`."""
        return self.bounds(device, heads).diff(dim=-1)

    def video_sizes(self, like: Tensor) -> Tensor:
        """Return the tokens of each video block, [B|1, H|1, 1, M], like `like` [B, H, ., .]."""
        sizes = self.sizes(like.device, like.shape[1])[..., : self.video]
        return sizes.to(like.dtype)[..., None, :]


class Layout(NamedTuple):
    """How queries and keys are ordered and cut; they may differ."""

    q: Blocks
    kv: Blocks

    @classmethod
    def uniform(cls, x: QKV, size: int, kv_size: int | None = None) -> Layout:
        """Cut queries and keys, in the given order, every `size` and every `kv_size` tokens."""
        return cls(_uniform(x.q.shape[2], size), _uniform(x.k.shape[2], kv_size or size))

    def own(self, device: torch.device | str = "cpu", segment: int = 1) -> Tensor:
        """Return which key blocks hold tokens of a query block, bool [B|1, H|1, M, N].

        The last query stands at the last key. segment: also those that share one with a query
        block, where every `segment` keys are one.
        """
        shift = self.kv.length - self.q.length
        rows = self.q.bounds(device)[..., : self.q.video + 1] + shift
        cols = self.kv.bounds(device)[..., None, : self.kv.video + 1]
        first = rows[..., :-1, None] // segment * segment
        stop = -(-rows[..., 1:, None] // segment) * segment
        return (cols[..., :-1] < stop) & (cols[..., 1:] > first)

    def future(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return which block pairs lie wholly in the future and which on the diagonal of causal
        attention, bool [B|1, H|1, M, N] each.
        """
        shift = self.kv.length - self.q.length
        rows, cols = self.q.bounds(device), self.kv.bounds(device)
        first, last = rows[..., :-1, None] + shift, rows[..., 1:, None] - 1 + shift
        start, end = cols[..., None, :-1], cols[..., None, 1:]
        return start > last, (start <= last) & (end > first)


@lru_cache(maxsize=32)
def _uniform(length: int, size: int) -> Blocks:
    """Return the same object for the same sizes: what is derived from blocks is kept by them."""
    return Blocks.uniform(length, size)


def _spread(x: Tensor) -> Tensor:
    """Return a vector [n] as [1, 1, n], and what is per head already as it is."""
    return x[None, None] if x.dim() == 1 else x


def _bounds(length: int, size: int, device: torch.device | str) -> Tensor:
    """Return the offsets of blocks of `size` tokens, [ceil(length / size) + 1] int32."""
    # two launches, for every call of every layer asks
    past = -(-length // size) * size + 1
    return torch.arange(0, past, size, dtype=torch.int32, device=device).clamp_(max=length)
