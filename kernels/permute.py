"""Permute tokens and restore them: out[t] = x[order[t]], or out[order[t]] = x[t] with `inverse`.

Users: every method that arranges tokens (draft's patches, tiles, curves, svg2's clusters). A block
written contiguously gives its mean for free: `move_tokens` orders and pools several tensors in one
pass over all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dit_sparse.kernels.contract import Cut, as_cut
from dit_sparse.kernels.pool import pick, pool_blocks


class Move(NamedTuple):
    """What a pass does with one tensor x [B, H, S, D].

    order: integer [B or 1, H or 1, T] token of x at each arranged position, None for the T = S
    tokens as they stand; blocks: cut of the T positions, which are all in some block.
    tokens: write them [B, H, T, D]; mean: dtype of the means of the blocks [B, H, N, D], if any.
    """

    x: Tensor
    order: Tensor | None
    blocks: Cut | int
    tokens: bool
    mean: torch.dtype | None


def move_tokens(*moves: Move, impl: str = "auto") -> list[tuple[Tensor | None, Tensor | None]]:
    """Return what each move asks for, (tokens, means), None for the rest: one launch in Triton.

    >>> x = torch.arange(4.0).view(1, 1, 4, 1)
    >>> order = torch.tensor([[[3, 2, 1, 0]]])
    >>> [t.flatten().tolist() for t in move_tokens(Move(x, order, 2, True, x.dtype))[0]]
    [[3.0, 2.0, 1.0, 0.0], [2.5, 0.5]]
    """
    # one launch for all, or none
    if all(pick(move.x, impl) == "triton" for move in moves):
        from dit_sparse.kernels._tokens import Job, new_mean, token_pass

        jobs = []
        for x, order, blocks, tokens, mean in moves:
            if order is not None:
                _check(x, order)
            length, cut = (x if order is None else order).shape[2], as_cut(blocks)
            jobs.append(
                Job(
                    x, order, cut, _new_tokens(x, length) if tokens else None,
                    None if mean is None else new_mean(x, cut, length, mean),
                )
            )  # fmt: skip
        token_pass(jobs)
        return [(job.out, job.mean) for job in jobs]
    found = []
    for x, order, blocks, tokens, mean in moves:
        y = x if order is None else rows_at(x, order)
        pooled = None if mean is None else pool_blocks(y, blocks, dtype=mean, impl="torch")
        found.append((y if tokens else None, pooled))
    return found


def permute_tokens(
    x: Tensor, order: Tensor, *, inverse: bool = False, impl: str = "auto"
) -> Tensor:  # fmt: skip
    """Gather x along its token axis, or restore it.

    x: [B, H, S, D]; order: [B or 1, H or 1, S] integer permutation; inverse: undo a permutation by
        the same order
    returns: [B, H, S, D]

    >>> x, order = torch.randn(1, 2, 6, 4), torch.randperm(6).view(1, 1, 6)
    >>> bool((permute_tokens(permute_tokens(x, order), order, inverse=True) == x).all())
    True
    """
    _check(x, order, x.shape[2] if x.dim() == 4 else None)
    if pick(x, impl) == "triton":
        from dit_sparse.kernels._tokens import Job, token_pass

        out = _new_tokens(x, x.shape[2])
        token_pass([Job(x, order, Cut(64), out, None, is_inverse=inverse)])
        return out
    at = order.long()
    if inverse:
        places = torch.arange(at.shape[2], device=at.device).expand(at.shape)
        at = torch.zeros_like(at).scatter_(2, at, places)
    return rows_at(x, at)


def _check(x: Tensor, order: Tensor, length: int | None = None) -> None:
    """Raise one clear line unless `order` fits x [B, H, S, D]; length: of a whole permutation."""
    ok = x.dim() == 4 and order.dim() == 3 and not order.is_floating_point()
    ok = ok and order.shape[0] in (1, x.shape[0]) and order.shape[1] in (1, x.shape[1])
    if not ok or order.shape[2] != (length or order.shape[2]):
        want = f"integer [B or 1, H or 1, S] for x {list(x.shape)}"
        raise ValueError(f"order must be {want}, got {order.dtype} {list(order.shape)}")


def _new_tokens(x: Tensor, length: int) -> Tensor:
    return torch.empty(*x.shape[:2], length, x.shape[3], device=x.device, dtype=x.dtype)


def rows_at(x: Tensor, at: Tensor) -> Tensor:
    """Return x [B, H, S, D] at tokens [B or 1, H or 1, T], read from the memory order it has."""
    _check(x, at)
    batch, heads, tokens, dim = x.shape
    b = torch.arange(batch, device=x.device)[:, None, None]
    h = torch.arange(heads, device=x.device)[:, None]
    if x.stride(1) < x.stride(2):
        table, row = x.transpose(1, 2), (b * tokens + at) * heads + h
    else:
        table, row = x, (b * heads + h) * tokens + at
    # whole rows of memory: several times faster on a CPU than a gather with an index per number
    found = table.reshape(-1, dim).index_select(0, row.flatten())
    return found.view(batch, heads, at.shape[2], dim)
