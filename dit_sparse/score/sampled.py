"""Scores from a sample of each block's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.arranged import arranged, video_cut
from dit_sparse.constants import golden
from dit_sparse.core import QKV, Blocks, Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.importance import sampled_importance
from dit_sparse.kernels.strata import sample_strata, take

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
        moved = arranged(x, layout, ctx)
        q, k = moved.q, moved.k
        if self.similarity:
            limits = self.similarity
            ctx.once("level_caps", lambda: level_caps(k.detach(), layout.kv, limits, q.shape[1]))
        (q_some, q_count), (k_some, k_count) = (
            sample(t, blocks, self.every, ctx.step, ctx.impl)
            for t, blocks in ((q, layout.q), (k, layout.kv))
        )
        score = sampled_importance(
            q_some,
            k_some,
            q_count,
            k_count,
            scale=ctx.scale,
            reduce=self.reduce,
            norm=self.norm,
            impl=ctx.impl,
        )
        # a block that holds no token has a row of zeros
        return score / score.sum(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).tiny)


def sample(
    x: Tensor, blocks: Blocks, every: int, step: int, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return s = size / every tokens of each video block, [B, H, N * s, D], and how many are real.

    x: [B, H, S, D] arranged tokens. Where in its stratum a token is taken follows two independent
    irrational numbers, the golden ratio over the strata and pi over the steps.
    """
    video = x[:, :, : blocks.video_tokens]
    s = max(1, blocks.size // every)
    return sample_strata(
        video, video_cut(blocks), s, walk=golden(1), shift=step * pi % 1, impl=impl
    )


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
