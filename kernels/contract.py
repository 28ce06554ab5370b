"""The arguments every attention implementation shares: cuts, columns, and their checks (torch
only).

Used by all files of this folder; imports nothing of `dit_sparse` outside it.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    return f"{str(x.dtype)[6:]} {list(x.shape)}" if isinstance(x, Tensor) else repr(x)


def _shaped(name: str, x: object, *axes: object, dtype: object = None) -> None:
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
    _shaped("columns.index", index, batch, heads, rows, index.shape[-1], dtype=torch.int32)
    if group < 1:
        _fail("columns.group", "a count of columns, at least 1", group)


def check_cut(name: str, cut: Cut, batch: int, heads: tuple[int, ...]) -> None:
    """Raise one clear line unless `cut` is valid for a tensor of `batch` and `heads`."""
    ok = (
        isinstance(cut.size, int | torch.SymInt)
        and not isinstance(cut.size, bool)
        and cut.size >= 1
    )
    if not ok:
        _fail(name, "a Cut or a block size of at least 1", cut.size)
    if cut.offsets is not None:
        blocks = max(cut.offsets.shape[-1], 2) if cut.offsets.dim() == 3 else "N + 1"
        _shaped(f"{name}.offsets", cut.offsets, (1, batch), (1, *heads), blocks, dtype=torch.int32)


def check(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, q_blocks: Cut, kv_blocks:
    Cut, columns: Columns | None, tail: Tensor | None, row_mask: Tensor | None, scale: float,
    q_order: Tensor | None = None, quant: str = "none",
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
    capacity = kv_index.shape[-1] if isinstance(kv_index, Tensor) and kv_index.dim() == 4 else "C"
    _shaped("kv_index", kv_index, batch, heads, rows, capacity, dtype=torch.int32)
    if capacity > blocks:
        _fail("kv_index", f"of a capacity of at most {blocks} key blocks", kv_index)
    if scale <= 0:
        _fail("scale", "a positive number", scale)
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
        _shaped("tail", tail, batch, groups, dim, dim_v)
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
