"""A learned gate on pooled queries and keys, and the map that it learns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.arranged import arranged
from dit_sparse.core import QKV, Context, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.pool import pool_blocks
from dit_sparse.kernels.scores import products

# numbers of the largest temporary map
SCRATCH = 1 << 26


@dataclass(frozen=True)
class SeerGate:
    """A learned product of pooled queries and keys, [B, H, M, N].

        g_ij = softmax_j((W_q avg q_i) . (W_k [max; min; avg] k_j) / sqrt(G)), j in the past or own

    Weights of the layer, with all heads of the model: `gate_q.weight` [H, D, G], `gate_k.weight`
    [Hkv, 3 D, G] and, with rotary positions, `inv_freq` [R / 2]. q and k arrive rotated; the gate
    takes them before their rotation, of the first R channels by halves, and rotates its own vectors
    by the position of a block's first token. Without weights the gate is q . avg k of what it is
    given, scaled. Keys of a group share W_k. A block's own tokens count, later ones too. Used by
    SeerAttention.
    """

    def __call__(self, x: QKV, layout: Layout, ctx: Context) -> Tensor:
        moved = arranged(x, layout, ctx)
        q, k = (moved.q, moved.k)
        q = q[:, :, : layout.q.video_tokens].detach()
        k = k[:, :, : layout.kv.video_tokens].detach()
        wide = torch.promote_types(q.dtype, torch.float32)
        shift = layout.kv.length - layout.q.length
        if ctx.weights:
            rows, cols = self._mapped(q.to(wide), k.to(wide), layout, ctx, shift)
            scale = rows.shape[-1] ** -0.5
        else:
            pairs = zip((q, k), layout, strict=True)
            rows, cols = (pool_blocks(t, b.size, dtype=wide, impl=ctx.impl) for t, b in pairs)
            scale = q.shape[-1] ** -0.5 if ctx.scale is None else ctx.scale
        logits = scale * rows @ cols.repeat_interleave(rows.shape[1] // cols.shape[1], 1).mT
        if ctx.causal:
            first = torch.arange(logits.shape[3], device=q.device) * layout.kv.size
            stop = (torch.arange(logits.shape[2], device=q.device) + 1) * layout.q.size + shift
            logits = logits.masked_fill(first >= stop[:, None], float("-inf"))
        return logits.softmax(-1)

    def _mapped(
        self, q: Tensor, k: Tensor, layout: Layout, ctx: Context, shift: int
    ) -> tuple[Tensor, Tensor]:
        """Return the gate's vectors of query blocks [B, H, M, G] and key blocks [B, Hkv, N, G]."""
        dim, heads, groups = q.shape[-1], q.shape[1], k.shape[1]
        found = ctx.weights.get("gate_q.weight")
        gate = found.shape[-1] if found is not None else dim
        (total, mine), group = ctx.held(heads), heads // groups
        rows = ctx.learned("gate_q.weight", total, dim, gate)[mine]
        cols = ctx.learned("gate_k.weight", total // group, 3 * dim, gate)
        maps = rows.to(q.dtype), cols[mine.start // group :][:groups].to(q.dtype)
        freq = ctx.weights.get("inv_freq")
        if freq is not None and (freq.ndim != 1 or 2 * len(freq) > min(dim, gate)):
            raise ArgumentError(
                f"weights: 'inv_freq' of layer {ctx.layer} has shape {list(freq.shape)}; expected "
                f"[R / 2] with R at most {min(dim, gate)}"
            )
        vectors = []
        for t, blocks, offset, weight in zip((q, k), layout, (shift, 0), maps, strict=True):
            at = torch.arange(t.shape[2], device=t.device) + offset
            t = t if freq is None else rotate(t, at, -freq)
            pooled = pool_blocks(t, blocks.size, impl=ctx.impl)
            if weight.shape[1] == 3 * dim:
                pooled = torch.cat((*extremes(t, blocks.size), pooled), -1)
            pooled = torch.einsum("bhmd,hdg->bhmg", pooled, weight)
            start = torch.arange(pooled.shape[2], device=t.device) * blocks.size + offset
            vectors.append(pooled if freq is None else rotate(pooled, start, freq))
        return vectors[0], vectors[1]


def rotate(x: Tensor, position: Tensor, freq: Tensor) -> Tensor:
    """Rotate the first 2 len(freq) channels of x [B, H, S, D] by position [S] times freq.

    Channel i turns with channel i + len(freq), as in Llama; minus freq turns back.
    """
    half = len(freq)
    angle = position[:, None].to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    angle = angle * freq.to(angle.dtype)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def extremes(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the largest and the least of every channel over blocks of tokens, [B, H, N, D]."""
    missing = -x.shape[2] % size
    # the last token again changes neither
    full = torch.cat((x, x[:, :, -1:].expand(-1, -1, missing, -1)), 2).unflatten(2, (-1, size))
    return full.amax(3), full.amin(3)


def block_max_map(x: QKV, size: int, scale: float | None = None) -> Tensor:
    """Return the map that the gate learns, [B, H, M, N]: rows sum to 1, 0 in the future.

        A_ij = max_{r in i} max_{c in j} softmax_c(scale q_r . k_c),  divided by its row's sum

    Causal; the distillation target of SeerAttention: the loss is KL(A || gate). In two passes over
    some rows at a time: no map of single tokens is kept.
    """
    q, k, _ = x
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    length, shift = k.shape[2], k.shape[2] - q.shape[2]
    key, step = torch.arange(length, device=q.device), size
    step *= max(1, SCRATCH // (q.shape[0] * q.shape[1] * length * size))
    parts = []
    for at in range(0, q.shape[2], step):
        rows = q[:, :, at : at + step]
        logits = factor * products(rows, k)
        position = torch.arange(at, at + rows.shape[2], device=q.device) + shift
        logits = logits.masked_fill(key > position[:, None], float("-inf"))
        lse = logits.logsumexp(-1, keepdim=True)
        back = -length % size
        padded = torch.nn.functional.pad(logits, (0, back), value=float("-inf"))
        peak = (padded.unflatten(3, (-1, size)).amax(4) - lse).exp()
        peak = torch.nn.functional.pad(peak, (0, 0, 0, -peak.shape[2] % size))
        parts.append(peak.unflatten(2, (-1, size)).amax(3))
    found = torch.cat(parts, 2)
    return found / found.sum(-1, keepdim=True)
