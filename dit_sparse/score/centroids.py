"""Scores of cluster pairs from their centroids: attention mass, and the error of compensation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dit_sparse.arranged import arranged, block_means, video_cut
from dit_sparse.core import QKV, Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.pool import pool_blocks
from dit_sparse.kernels.probe import probe_error
from dit_sparse.kernels.scores import pooled_scores


@dataclass(frozen=True)
class CentroidMass:
    """P_cj = n_j exp(S_cj) / sum_l n_l exp(S_cl), S = scale * qbar_c . kbar_j, [B, H, M, N].

    float32, or float64 for float64. An empty cluster has mass 0. The means are those that
    `Clusters` left in ctx.cache, else pooled; the mass is left there for `TopPBudget`.
    Used by SVG2, and by SVG-EAR for its budget.
    """

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        q, k = centroids(x, layout, ctx)

        def make() -> Tensor:
            cut, tokens = video_cut(layout.kv), layout.kv.video_tokens
            return pooled_scores(
                q, k, scale=ctx.scale, cut=cut, tokens=tokens, softmax=True, impl=ctx.impl
            )

        return ctx.once("centroid mass", make)


@dataclass(frozen=True)
class ProbedError:
    """log(E_cj / n_j): how wrong the mean key and value of block j are for query centroid c.

    E_cj = sum_{n in j} ||exp(S_cj) vbar_j - exp(s_cn) v_n||^2 with s_cn = scale * qbar_c . k_n
    (probe="value"), or without the values (probe="key"); [B, H, M, N] float32 or wider, -inf for a
    block without error. Used by SVG-EAR.
    """

    probe: str = "value"

    def __post_init__(self) -> None:
        if self.probe not in ("value", "key"):
            raise ArgumentError(f"probe={self.probe!r} must be 'value' or 'key'")

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        CentroidMass()(x, layout, ctx)
        q, k_mean = centroids(x, layout, ctx)
        moved, tokens, cut = arranged(x, layout, ctx), layout.kv.video_tokens, video_cut(layout.kv)
        k, v = (t.detach()[:, :, :tokens] for t in (moved.k, moved.v))
        values = self.probe == "value"
        # the key-only form reads no values; a view of the keys stands in
        v_mean = k_mean
        if values:
            # a remainder of block means asks for the same
            v_mean = ctx.once(
                "v centroids", lambda: pool_blocks(v, cut, dtype=k_mean.dtype, impl=ctx.impl)
            )
        error = probe_error(
            q, k, v if values else k, k_mean, v_mean, cut, scale=ctx.scale, values=values,
            impl=ctx.impl,
        )  # fmt: skip
        return error - layout.kv.video_sizes(q).clamp(min=1).log()


def centroids(x: QKV, layout: Layout, ctx: Context) -> tuple[Tensor, Tensor]:
    """Return the means of the video blocks, q [B, H, M, D] and k [B, Hkv, N, D], float32 or wider.

    Those of an empty cluster are finite, nothing more.
    """

    def pooled(side: int) -> Tensor:
        return block_means(arranged(x, layout, ctx))[side].detach()

    return (
        ctx.once("q centroids", lambda: pooled(0)),
        ctx.once("k centroids", lambda: pooled(1)),
    )
