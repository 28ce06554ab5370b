"""What may be timed: outputs against a float64 oracle on sampled query rows.

    error = worst row of |out - true| / mean row of |true|   <=   2 error(eager) + eps

eager is the reference in float32 arithmetic, stored in the dtype of the tensors, eps that dtype's
rounding: the bound follows from the problem and is typed nowhere. In bfloat16 it is near 1 %: a
list of 100 blocks that lost one is 10 % off. Rows are sampled because the oracle needs the logits
of every key: all rows of a video would be N x N numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dit_sparse.core import QKV
from dit_sparse.errors import DitSparseError
from dit_sparse.kernels import reference
from dit_sparse.kernels.attention import Columns
from dit_sparse.kernels.contract import as_cut, per_head
from dit_sparse.testing import rounding_band

ROWS = 48


class NotTimed(DitSparseError):
    """This cannot run here, or its output is wrong; the text says why."""

    def __init__(self, why: str, wrong: bool = False) -> None:
        super().__init__(why)
        self.wrong = wrong


def sample(tokens: int, device: torch.device) -> Tensor:
    """Return up to 48 query positions [R] from the first to the last, in all places of a block."""
    return torch.linspace(0, tokens - 1, ROWS, device=device).round().long().unique()


def error_share(out: Tensor, near: Tensor, true: Tensor, dtype: torch.dtype) -> float:
    """Return the error of rows [..., R, D] as a share of its bound; inf when one is not finite."""
    if not out.isfinite().all():
        return float("inf")
    size = true.double().norm(dim=-1).mean()

    def worst(x: Tensor) -> float:
        return ((x.double() - true.double()).norm(dim=-1).max() / size).item()

    return worst(out) / (2 * worst(near) + rounding_band(dtype))


def refuse(share: float, what: str) -> float:
    """Return the share of the bound, or raise when the error is above it."""
    if not share <= 1:
        raise NotTimed(f"wrong output: {what} is off by {share:.3g} times its bound", wrong=True)
    return share


def check_dense(out: Tensor, x: QKV, what: str) -> float:
    """Raise unless out [B, H, S, D] is full attention; return its error as a share of its bound."""
    batch, heads, tokens, _ = x.q.shape
    count = torch.ones(batch, heads, 1, dtype=torch.int32, device=x.q.device)
    lists = count, torch.zeros_like(count)[..., None]
    return check_listed(out, (*x, *lists), {"q_blocks": tokens, "kv_blocks": tokens}, what)


def check_listed(
    out: Tensor, args: tuple[Tensor, ...], options: dict[str, Any], what: str, lse: Any = None
) -> float:
    """Raise unless out [B, H, S, Dv] (and lse [B, H, S]) is the block-sparse attention of a call.

    args, options: those of `block_sparse_attention`, not causal. Returns the worse error, as a
    share of its bound.
    """
    rows, dtype = sample(args[0].shape[2], args[0].device), args[0].dtype
    true, near = (_oracle(rows, args, options, math) for math in (torch.float64, None))
    order = options.get("q_order")
    shares = [error_share(_at(out, rows, order), near[0], true[0], dtype)]
    if lse is not None:
        got, *told = (x[..., None] for x in (_at(lse, rows, order), near[1], true[1]))
        shares.append(error_share(got, told[0], told[1], dtype))
    return refuse(max(shares), what)


def check_fp8(out: Tensor, args: tuple[Tensor, ...], options: dict[str, Any], what: str) -> float:
    """Raise unless out [B, H, S, Dv] is within .05 of the block-sparse attention of a call, over a
    sample of its rows; return the share of that."""
    rows = sample(args[0].shape[2], args[0].device)
    true = _oracle(rows, args, options, torch.float64)[0]
    off = (_at(out, rows, options.get("q_order")).double() - true).norm() / true.norm()
    return refuse(float(off) / 0.05, what)


def _at(x: Tensor, rows: Tensor, order: Tensor | None) -> Tensor:
    """Return x [B, H, S, ...] of the queries at arranged positions `rows`."""
    if order is None:
        return x[:, :, rows]
    at = order[:, :, rows].long().expand(*x.shape[:2], -1)
    return x.gather(2, at if x.dim() == 3 else at[..., None].expand(-1, -1, -1, x.shape[3]))


def _oracle(
    rows: Tensor, args: tuple[Tensor, ...], options: dict[str, Any], math: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Return (out, lse) of some query rows, each as a block of its own with its block's lists."""
    q, k, v, count, index = args
    batch, heads, tokens, _ = q.shape
    cut = as_cut(options["q_blocks"])
    block = reference.token_blocks(cut, tokens, batch, heads, q.device)[:, :, rows]

    def own(x: Tensor) -> Tensor:
        """Take the entries [B, H, R, ...] of the rows' blocks from [B, H, M, ...]."""
        x = per_head(x, batch, heads)
        at = block if x.dim() == 3 else block[..., None].expand(-1, -1, -1, x.shape[-1])
        return x.gather(2, at)

    columns: Columns | None = options.get("columns")
    if columns is not None:
        mine = {name: getattr(columns, name) for name in ("mask", "count", "index")}
        mine = {name: own(x) for name, x in mine.items() if x is not None}
        columns = replace(columns, **mine)
    mask, q = options.get("row_mask"), _at(q, rows, options.get("q_order"))
    return reference.block_sparse_attention(
        q, k, v, own(count), own(index), q_blocks=1, kv_blocks=options["kv_blocks"],
        columns=columns, tail=options.get("tail"), scale=options.get("scale"),
        row_mask=None if mask is None else mask[:, :, rows], math_dtype=math,
    )  # fmt: skip
