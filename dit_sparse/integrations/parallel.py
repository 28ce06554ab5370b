"""Ulysses: processes that hold parts of the tokens exchange them for parts of the heads, and back.

    here    [B, s, H, D]   all heads of some tokens      q, k, v
    there   [B, S, h, D]   some heads of all tokens      attention
    here    [B, s, H, D]                                 out

The host cuts every piece of the sequence by itself (extra tokens before, box, extra tokens behind),
as `tensor_split` does, so all sizes follow from the whole: no process asks another for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dit_sparse.core import Heads
from dit_sparse.errors import DitSparseError
from dit_sparse.integrations.sequence import REST, Sequence


def split(size: int, parts: int) -> list[int]:
    """Return the sizes of the parts that `tensor_split` makes."""
    return [size // parts + (part < size % parts) for part in range(parts)]


@dataclass(frozen=True, eq=False)
class Ulysses:
    """A group of processes that share one sequence. rank, ranks: place in it and its size."""

    rank: int
    ranks: int
    group: Any = field(default=None, repr=False)

    def heads(self, total: int) -> Heads:
        """Return which of all heads this process attends with."""
        return Heads(sum(split(total, self.ranks)[: self.rank]), total)

    def pieces(self, of: Sequence, tokens: int) -> list[list[int]]:
        """Return the sizes of the pieces each process holds; `tokens` is their sum in this one."""
        if REST in (of.before, of.after):
            raise DitSparseError("this transformer class is not supported under Ulysses")
        cuts = [split(n, self.ranks) for n in (of.before, of.box, of.after)]
        held = [list(sizes) for sizes in zip(*cuts, strict=True)]
        if sum(held[self.rank]) != tokens:
            raise DitSparseError(
                f"process {self.rank} of {self.ranks} holds {tokens} tokens; of {of} it should "
                f"hold {sum(held[self.rank])}"
            )
        return held

    def gather(self, x: Tensor, of: Sequence) -> Tensor:
        """Return all tokens of our heads, [B, S, h, D], from x [B, s, H, D], all heads of ours."""
        batch, tokens, heads, dim = x.shape
        held, shares = self.pieces(of, tokens), split(heads, self.ranks)
        mine = shares[self.rank]
        received = self._exchange(
            x.permute(2, 0, 1, 3),
            [share * batch * tokens * dim for share in shares],
            [mine * batch * sum(sizes) * dim for sizes in held],
        )
        parts = [
            flat.view(mine, batch, sum(sizes), dim).split(sizes, 2)
            for flat, sizes in zip(received, held, strict=True)
        ]
        whole = torch.cat([part[piece] for piece in range(3) for part in parts], 2)
        return whole.permute(1, 2, 0, 3)

    def scatter(self, x: Tensor, of: Sequence, tokens: int, heads: int) -> Tensor:
        """Return all heads of our tokens, [B, s, H, D], from x [B, S, h, D]; undoes `gather`."""
        batch, _, mine, dim = x.shape
        held, shares = self.pieces(of, tokens), split(heads, self.ranks)
        cut = x.split([sizes[piece] for piece in range(3) for sizes in held], 1)
        sent = [torch.cat(cut[rank :: self.ranks], 1) for rank in range(self.ranks)]
        received = self._exchange(
            torch.cat([part.permute(2, 0, 1, 3).flatten() for part in sent]),
            [mine * batch * sum(sizes) * dim for sizes in held],
            [share * batch * tokens * dim for share in shares],
        )
        parts = [
            flat.view(share, batch, tokens, dim)
            for flat, share in zip(received, shares, strict=True)
        ]
        return torch.cat(parts).permute(1, 2, 0, 3).contiguous()

    def gather_mask(self, mask: Tensor, of: Sequence) -> Tensor:
        """Return a mask of all keys [..., S] from that of our keys [..., s], the same elsewhere."""
        held = self.pieces(of, mask.shape[-1])
        longest = max(map(sum, held))
        ours = torch.nn.functional.pad(mask.to(torch.float32), (0, longest - mask.shape[-1]))
        every = [torch.empty_like(ours) for _ in held]
        dist.all_gather(every, ours.contiguous(), group=self.group)
        parts = [
            part[..., : sum(sizes)].split(sizes, -1)
            for part, sizes in zip(every, held, strict=True)
        ]
        whole = torch.cat([part[piece] for piece in range(3) for part in parts], -1)
        return whole.to(mask.dtype)

    def _exchange(self, x: Tensor, sent: list[int], received: list[int]) -> tuple[Tensor, ...]:
        """Send a part of x to every process; return what each sent here, flat."""
        out = x.new_empty(sum(received))
        dist.all_to_all_single(out, x.contiguous().view(-1), received, sent, group=self.group)
        return out.split(received)
