"""The arguments every attention implementation shares: cuts, columns, and their checks (torch
only).

Used by all files of this folder; imports nothing of `dit_sparse` outside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from numbers import Real
from typing import Any

import torch
from torch import Tensor

# what a caller may ask for; "auto" chooses by device and never stands for "reference"
IMPLS = ("auto", "triton", "torch", "reference")
# what the products are made of: the inputs' numbers, or 8-bit ones (see quant.py)
QUANTS = ("none", "fp8")
_CHOICE = (torch.bool, torch.int8)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Cut:
    """Cut a token axis into blocks.

    size: tokens per block (the last may be short); with offsets, the static upper bound of a
        block's size
    offsets: None, or int32 [B or 1, H or Hkv or 1, N + 1] ascending token positions; equal
        neighbours are an empty block, tokens outside [offsets[0], offsets[N]) belong to no block

    Example: `Cut(128)`, or `Cut(200, offsets)` for clusters of at most 200 tokens.
    """

    size: int
    offsets: Tensor | None = None

    def count(self, tokens: int) -> int:
        """Return the number of blocks on an axis of `tokens` tokens."""
        return -(-tokens // self.size) if self.offsets is None else self.offsets.shape[-1] - 1


@dataclass(frozen=True, eq=False)
class Columns:
    """Extra key columns that share the softmax of the exact blocks (pooled remainder, centroids).

    k: [B, H or Hkv, C2, D], v: [B, H or Hkv, C2, Dv]
    bias: None or float32 [B or 1, H or 1, C2], added to the scaled logit (log n for a group of n
        tokens); -inf hides a column
    mask: None or bool/int8 [B or 1, H or 1, M, C2], which query block sees which column (None: all
        see all)
    count, index: instead of a mask, int32 [B, H, M] and [B, H, M, L]: each query block sees the
        listed groups of `group` consecutive columns (the last group may be short), packed left
    """

    k: Tensor
    v: Tensor
    bias: Tensor | None = None
    mask: Tensor | None = None
    count: Tensor | None = None
    index: Tensor | None = None
    group: int = 1


def as_cut(blocks: Cut | int) -> Cut:
    """Return `blocks` as a Cut; a plain int is a uniform block size."""
    return blocks if isinstance(blocks, Cut) else Cut(blocks)


def as_scale(scale: Any, dim: int) -> float:
    """Return the scale of the logits, dim ** -0.5 for None; raise unless it can be one."""
    if scale is None:
        return dim**-0.5
    number = isinstance(scale, Real | torch.SymFloat) and not isinstance(scale, bool)
    value: Any = scale if number else -1
    if not 0 < value < inf:
        _fail("scale", "a finite number above 0", scale)
    return float(value)


def per_head(x: Tensor, batch: int, heads: int) -> Tensor:
    """Expand axes 0 and 1 of x ([B or 1, H or Hkv or 1, ...]) to [batch, heads, ...]."""
    if x.shape[1] not in (1, heads):
        x = x.repeat_interleave(heads // x.shape[1], 1)
    return x.expand(batch, heads, *x.shape[2:])


def block_bounds(cut: Cut, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return first and past-the-end token of every block, int64 [B or 1, H or 1, N] each."""
    if cut.offsets is not None:
        off = cut.offsets.long()
        return off[..., :-1], off[..., 1:]
    start = torch.arange(cut.count(tokens), device=device)[None, None] * cut.size
    return start, (start + cut.size).clamp(max=tokens)


def allocate(q: Tensor, head_dim_v: int) -> tuple[Tensor, Tensor]:
    """Allocate out [B, H, Sq, Dv], in memory order [B, S, H, D] if q is stored so, and lse [B, H,
    Sq]."""
    batch, heads, tokens, _ = q.shape
    lse = torch.empty(batch, heads, tokens, device=q.device, dtype=torch.float32)
    if q.stride(1) < q.stride(2):
        return q.new_empty(batch, tokens, heads, head_dim_v).transpose(1, 2), lse
    return q.new_empty(batch, heads, tokens, head_dim_v), lse


def _fail(name: str, rule: str, got: object) -> None:
    raise ValueError(f"{name} must be {rule}, got {got if isinstance(got, str) else _text(got)}")


def _text(x: object) -> str:
    if isinstance(x, Tensor):
        return f"{str(x.dtype)[6:]} {list(x.shape)}"
    return f"a {type(x).__name__} of {len(x)}" if isinstance(x, list | tuple) else repr(x)


def _shaped(name: str, x: Any, *axes: object, dtype: object = None) -> None:
    """Raise unless x is a tensor whose axes are the given sizes (a tuple lists the allowed
    ones)."""
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    ok = isinstance(x, Tensor) and x.dim() == len(axes) and (dtype is None or x.dtype in dtypes)
    ok = ok and all(
        n in a if isinstance(a, tuple) else n == a for n, a in zip(x.shape, axes, strict=True)
    )
    if not ok:
        word = "a tensor" if dtype is None else " or ".join(str(d)[6:] for d in dtypes)
        sizes = ", ".join(
            " or ".join(map(str, dict.fromkeys(a))) if isinstance(a, tuple) else str(a)
            for a in axes
        )
        raise ValueError(f"{name} must be {word} of shape [{sizes}], got {_text(x)}")


def _check_lists(columns: Columns, batch: int, heads: int, rows: int) -> None:
    """Raise one clear line unless the lists of `columns` are absent or complete."""
    count, index, group = columns.count, columns.index, columns.group
    if count is None and index is None:
        return
    if columns.mask is not None or count is None or index is None:
        _fail("columns", "given either a mask or both count and index", "another combination")
    _shaped("columns.count", count, batch, heads, rows, dtype=torch.int32)
    _shaped("columns.index", index, batch, heads, rows, _last(index, "L"), dtype=torch.int32)
    if not _is_count(group):
        _fail("columns.group", "a count of columns, at least 1", group)


def _is_count(x: Any) -> bool:
    return isinstance(x, int | torch.SymInt) and not isinstance(x, bool) and x >= 1


def _last(x: object, name: str) -> Any:
    """Return the length of the last axis, whatever it is; its name where there is none."""
    return x.shape[-1] if isinstance(x, Tensor) and x.dim() else name


def check_cut(name: str, cut: Cut, batch: int, heads: tuple[int, ...]) -> None:
    """Raise one clear line unless `cut` is valid for a tensor of `batch` and `heads`."""
    if not _is_count(cut.size):
        _fail(name, "a Cut or a block size of at least 1", cut.size)
    if cut.offsets is not None:
        blocks = _last(cut.offsets, "N + 1")
        blocks = max(blocks, 2) if isinstance(blocks, int | torch.SymInt) else blocks
        _shaped(f"{name}.offsets", cut.offsets, (1, batch), (1, *heads), blocks, dtype=torch.int32)


def check(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, q_blocks: Cut, kv_blocks:
    Cut, columns: Columns | None, tail: Tensor | None, row_mask: Tensor | None, scale: float | None,
    q_order: Tensor | None = None, quant: str = "none", causal: object = False,
) -> None:  # fmt: skip
    """Raise one line naming the argument and its value if the call breaks the contract; reads no
    device data."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        ok = isinstance(x, Tensor) and x.dim() == 4 and x.dtype in DTYPES
        if not ok:
            _fail(name, "a floating 4-D tensor [B, H, S, D]", x)
    batch, heads, s_q, dim = q.shape
    kv_heads, s_kv, dim_v = k.shape[1], k.shape[2], v.shape[3]
    if kv_heads == 0 or heads % kv_heads:
        _fail("k", f"of a head count that divides q's {heads}", k)
    if min(s_q, s_kv, dim, dim_v) <= 0:
        _fail("q, k and v", "without an axis of size 0", f"{_text(q)}, {_text(k)}, {_text(v)}")
    _shaped("k", k, batch, kv_heads, s_kv, dim, dtype=q.dtype)
    _shaped("v", v, batch, kv_heads, s_kv, dim_v, dtype=q.dtype)
    check_cut("q_blocks", q_blocks, batch, (heads,))
    check_cut("kv_blocks", kv_blocks, batch, (kv_heads, heads))
    rows, blocks = q_blocks.count(s_q), kv_blocks.count(s_kv)
    _shaped("kv_count", kv_count, batch, heads, rows, dtype=torch.int32)
    _shaped("kv_index", kv_index, batch, heads, rows, _last(kv_index, "C"), dtype=torch.int32)
    if kv_index.shape[-1] > blocks:
        _fail("kv_index", f"of a capacity of at most {blocks} key blocks", kv_index)
    as_scale(scale, dim)
    if not isinstance(causal, bool | torch.SymBool):
        _fail("causal", "True or False", causal)
    if quant not in QUANTS:
        _fail("quant", " or ".join(QUANTS), quant)
    if quant != "none" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        _fail("q, k and v", f"without gradients under quant={quant!r}, which has none", "some")
    groups = (heads, kv_heads)
    if columns is not None:
        ok = isinstance(columns, Columns) and isinstance(columns.k, Tensor) and columns.k.dim() == 4
        if not ok:
            _fail("columns", "a Columns(k, v, bias, mask)", type(columns).__name__)
        n = columns.k.shape[2]
        _shaped("columns.k", columns.k, batch, groups, n, dim, dtype=q.dtype)
        _shaped("columns.v", columns.v, batch, columns.k.shape[1], n, dim_v, dtype=q.dtype)
        if columns.bias is not None:
            _shaped("columns.bias", columns.bias, (1, batch), (1, *groups), n, dtype=torch.float32)
        if columns.mask is not None:
            _shaped("columns.mask", columns.mask, (1, batch), (1, heads), rows, n, dtype=_CHOICE)
        _check_lists(columns, batch, heads, rows)
    if tail is not None:
        if columns is None:
            _fail("tail", "given together with columns", "columns=None")
        _shaped("tail", tail, batch, groups, dim, dim_v, dtype=DTYPES)
    if row_mask is not None:
        _shaped("row_mask", row_mask, batch, (1, heads), s_q, blocks, dtype=_CHOICE)
    if q_order is not None:
        _shaped("q_order", q_order, (1, batch), (1, heads), s_q, dtype=(torch.int32, torch.int64))
    given = (q_blocks.offsets, kv_blocks.offsets, tail, row_mask, q_order)
    extra = [x for x in given if x is not None]
    if columns is not None:
        extra += [x for x in vars(columns).values() if isinstance(x, Tensor)]
    for x in (k, v, kv_count, kv_index, *extra):
        if x.device != q.device:
            _fail("every tensor", f"on q's device {q.device}", f"{_text(x)} on {x.device}")


def check_values(
    kv_count: Tensor, kv_index: Tensor, q_blocks: Cut, kv_blocks: Cut, tokens: tuple[int, int],
    columns: Columns | None, q_order: Tensor | None,
) -> None:  # fmt: skip
    """Raise one line if a list, a cut or an order points beside its axis; tokens: of q and of k.

    For a call that passed `check`, on the CPU alone: to read what is on a GPU is to wait for it.
    """
    if kv_index.device.type != "cpu" or type(kv_index) is not Tensor:
        return
    cuts = ("q_blocks", q_blocks, tokens[0]), ("kv_blocks", kv_blocks, tokens[1])
    for name, cut, length in cuts:
        if cut.offsets is not None:
            _within(f"{name}.offsets", "positions", cut.offsets, length)
            _within(f"{name}.offsets", "steps", cut.offsets.diff(), cut.size)
    _check_ids("kv_", kv_count, kv_index, kv_blocks.count(tokens[1]))
    if columns is not None and columns.count is not None and columns.index is not None:
        groups = -(-columns.k.shape[2] // columns.group)
        _check_ids("columns.", columns.count, columns.index, groups)
    if q_order is not None:
        _within("q_order", "places", q_order, tokens[0] - 1)
        found = torch.zeros(q_order.shape, dtype=torch.bool).scatter_(-1, q_order.long(), True)
        if not bool(found.all()):
            _fail("q_order", "each place once", "some twice")


def _check_ids(of: str, count: Tensor, index: Tensor, blocks: int) -> None:
    """Raise one line unless the lists [..., M] and [..., M, C] name some of `blocks` blocks."""
    _within(f"{of}count", "lengths", count, index.shape[-1])
    past = torch.arange(index.shape[-1]) >= count[..., None]
    _within(f"{of}index", "ids", index.masked_fill(past, 0), blocks - 1)


def _within(name: str, what: str, x: Tensor, most: int) -> None:
    """Raise one line unless every value lies in [0, most]."""
    if x.numel():
        least, largest = (int(n) for n in x.aminmax())
        if least < 0 or largest > most:
            _fail(name, f"{what} from 0 to {most}", f"{least} to {largest}")
