"""Scores from a sample of each block's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.arranged import arranged
from dit_sparse.constants import golden
from dit_sparse.core import QKV, Blocks, Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.importance import sampled_importance

# the tokens that one pooled token stands for, by level
FACTORS = {2: 2, 3: 4, 4: 8}


@dataclass(frozen=True)
class Sampled:
    """Importance of a key block to a query block, from every fourth token of each: [B, H, M, N].

    S_ij = max over sampled q in i, k in j of softmax(scale q k^T) over all sampled keys; each row
    is divided by its sum, so that it can be cut by cumulative mass.
    reduce: "max" | "mean" over the pairs. norm: "sum" as above | "max", which divides by the row's
    largest exponential (the rows of a block then count alike; in S_ij the row with the flattest
    softmax would otherwise count least).
    similarity: () or three cosines. A key block whose pooled tokens would be less alike than that
    is not pooled so far: the mean cosine of the first and the last token of its groups of 2, 4, 8
    must exceed the first, second, third number. The largest level that each block may have is
    shared with `select` as "level_caps", [B, H, N] int8. Used by PSA.
    """

    reduce: str = "max"
    norm: str = "sum"
    similarity: tuple[float, ...] = ()
    every: int = 4

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("importance", self.reduce, ("max", "mean")),
            ("norm", self.norm, ("sum", "max")),
        ):
            if value not in allowed:
                raise ArgumentError(f"{name}={value!r} must be {' or '.join(map(repr, allowed))}")
        good = all(isinstance(t, int | float) and -1 <= t <= 1 for t in self.similarity)
        if len(self.similarity) not in (0, 3) or not good:
            raise ArgumentError(
                f"similarity={self.similarity!r} must be () or three cosines in [-1, 1] for groups "
                "of 2, 4 and 8 tokens, e.g. (0.7, 0.65, 0.6)"
            )

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        if ctx.causal:
            raise ArgumentError(
                "causal=True: the sampled importance is a softmax over all keys, also future ones"
            )
        q, k, _ = arranged(x, layout, ctx)
        q, k = q.detach(), k.detach()
        q_at, q_count = sample(layout.q, self.every, ctx.step, q.device)
        k_at, k_count = sample(layout.kv, self.every, ctx.step, k.device)
        if self.similarity:
            limits = self.similarity
            ctx.once("level_caps", lambda: level_caps(k, layout.kv, limits, q.shape[1]))
        score = sampled_importance(
            take(q, q_at),
            take(k, k_at),
            q_count,
            k_count,
            scale=ctx.scale,
            reduce=self.reduce,
            norm=self.norm,
            impl=ctx.impl,
        )
        # a block that holds no token has a row of zeros
        return score / score.sum(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).tiny)


def sample(blocks: Blocks, every: int, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return positions [B|1, H|1, N * s] in the arranged video, and how many are real, [.., N].

    s = size / every positions per block, one in each of s equal strata; where in its stratum
    follows a quasi-random sequence over strata and steps. A block of fewer tokens has fewer.
    """
    bounds = blocks.bounds(device)[..., : blocks.video + 1]
    start, tokens = bounds[..., :-1, None].long(), bounds.diff(dim=-1)
    s = max(1, blocks.size // every)
    count = ((tokens * s + blocks.size - 1) // blocks.size).clamp_(max=s)
    stratum, one = torch.arange(s, device=device), 1 << 32
    # steps of two independent irrational numbers, the golden ratio and pi, in fixed point: exact
    # below 90,000 tokens a block, and not every device has float64
    inside = (stratum * int(golden(1) * one) + int(step * pi % 1 * one)) % one
    at = (stratum * one + inside) * tokens[..., None] // count.clamp(min=1)[..., None] // one
    # past the count, and in an empty block, any position will do
    at = torch.minimum(at, (tokens - 1).clamp(min=0)[..., None]) + start
    return at.clamp_(max=blocks.video_tokens - 1).flatten(-2), count.int()


def take(x: Tensor, at: Tensor) -> Tensor:
    """Return tokens [B, H, n, D] of x [B, H, S, D] at positions [B|1, H|1, n]."""
    if at.shape[:2] == (1, 1):
        return x.index_select(2, at[0, 0])
    if at.shape[1] not in (1, x.shape[1]):
        raise ArgumentError(f"{at.shape[1]} orders of the keys for {x.shape[1]} key heads")
    return x.gather(2, at[..., None].expand(*x.shape[:2], -1, x.shape[3]))


def level_caps(k: Tensor, blocks: Blocks, limits: tuple[float, ...], heads: int) -> Tensor:
    """Return the largest level [B, H, N] int8 whose pooled keys resemble their tokens.

    k: [B, Hkv, S, D] arranged keys. The last group of a block may be short; a group of one token
    is its own mean.
    """
    bounds = blocks.bounds(k.device)[..., : blocks.video + 1].long()
    start, end = bounds[..., :-1, None], bounds[..., 1:, None]
    caps = torch.ones(*k.shape[:2], blocks.video, dtype=torch.int8, device=k.device)
    wide, last = torch.promote_types(k.dtype, torch.float32), blocks.video_tokens - 1
    for (level, factor), limit in zip(FACTORS.items(), limits, strict=True):
        groups = -(-blocks.size // factor)
        first = start + torch.arange(groups, device=k.device) * factor
        real = first < end
        pair = (first, torch.minimum(first + factor - 1, end - 1))
        ends = (take(k, at.clamp(0, last).flatten(-2)).to(wide) for at in pair)
        cosine = F.cosine_similarity(*ends, dim=-1).unflatten(-1, (-1, groups))
        mean = (cosine * real).sum(-1) / real.sum(-1).clamp(min=1)
        caps = torch.where(mean > limit, level, caps).to(torch.int8)
    return caps if caps.shape[1] == heads else caps.repeat_interleave(heads // caps.shape[1], 1)
