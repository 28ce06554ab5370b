"""Dense attention that skips tiles of keys on its way, by what its softmax knows when it meets one.

    tile j of keys is left out by a tile of queries when, for all of these queries r,
        max_{t in j} s q_r k_t  <  max_{t in tiles before j} s q_r k_t  +  edge,    edge <= 0

Every product of queries and keys is computed; skipped tiles save their exponentials, values and
second product. Causal tiles that hold own keys are never skipped. What is left out are whole tiles,
so that another tile is another result. Used by BLASST, edge = ln(lambda); the kernel: _skip.py.
Limits of Triton: head dims up to 256, no float64, forward only.
One H200, Triton 3.6, 32 / 8 heads of 128, 32,768 tokens, causal, bf16: 19.5 ms where nothing is
skipped, 16.1 where .65 of the tiles are computed, 13.6 at .44, 11.9 at .26; dense with cuDNN 14.7.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_sparse.kernels.contract import _fail, _shaped, allocate, as_scale
from dit_sparse.kernels.pool import pick

TILE = (128, 64)
STAGES = 2
# what the kernel measures of a tile: max_r (max_{t in j} - max_{t in tiles up to j}) s q_r k_t
BELOW_PEAK = "below peak"
# the largest head dim that the kernel takes
WIDEST = 256


def skipping_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    edge: float,
    tile: tuple[int, int] = TILE,
    causal: bool = False,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend densely but for the tiles that stay `edge` below what was seen before them.

    q: [B, H, Sq, D], k: [B, Hkv, Skv, D], v: [B, Hkv, Skv, Dv], all finite
    edge: at most 0, in units of the natural logarithm; -inf computes everything
    tile: queries and keys of a tile, powers of two from 16
    causal: query i sees keys j <= i + Skv - Sq; scale: default D ** -0.5
    returns: out [B, H, Sq, Dv] in q's dtype, lse [B, H, Sq] float32 (natural log, of what was
        computed), done [B, H, ceil(Sq / tile)] int32, how many key tiles each query tile computed

    >>> x = torch.randn(1, 2, 256, 64)
    >>> out, lse, done = skipping_attention(x, x, x, edge=-5.0, causal=True)
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
            _fail(name, "a floating 4-D tensor [B, H, S, D]", x)
    (batch, heads, _, dim), kv_heads, s_kv = q.shape, k.shape[1], k.shape[2]
    if not kv_heads or heads % kv_heads:
        _fail("k", f"of a head count that divides q's {heads}", k)
    if not q.shape[2]:
        _fail("q", "of at least one query", q)
    _shaped("k", k, batch, kv_heads, s_kv, dim, dtype=q.dtype)
    _shaped("v", v, batch, kv_heads, s_kv, v.shape[3], dtype=q.dtype)
    if not edge <= 0:
        _fail("edge", "at most 0", edge)
    whole = isinstance(tile, tuple) and len(tile) == 2 and all(type(n) is int for n in tile)
    if not whole or any(size < 16 or size & (size - 1) for size in tile):
        _fail("tile", "two powers of two from 16, e.g. (128, 64)", tile)
    scale = as_scale(scale, dim)
    options = {"edge": edge, "tile": tile, "causal": causal, "scale": scale}
    if pick(q, impl, k, v, limit=WIDEST) == "triton":
        return _launch(q, k, v, **options)
    return _tiled(q, k, v, **options)


def _launch(
    q: Tensor, k: Tensor, v: Tensor, edge: float, tile: tuple[int, int], causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch skip_kernel."""
    from dit_sparse.kernels._launch import dense_rows, precision
    from dit_sparse.kernels._skip import skip_kernel
    from dit_sparse.kernels._tune import power_of_2
    from dit_sparse.kernels.block_sparse import _device, describe

    q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
    (batch, heads, s_q, dim), dim_v = q.shape, v.shape[3]
    has_tma = _device(q.device.index or 0)[0] if q.is_cuda else True
    head_dim, head_dim_v = power_of_2(dim), power_of_2(dim_v)
    k_desc = describe(k, tile[1], head_dim) if has_tma else None
    v_desc = describe(v, tile[1], head_dim_v) if k_desc is not None else None
    k_desc = None if v_desc is None else k_desc
    tiles = -(-s_q // tile[0])
    out, lse = allocate(q, dim_v)
    done = torch.empty(batch, heads, tiles, device=q.device, dtype=torch.int32)
    # log2 units; finite, so that it compares with the height of an empty softmax
    limit = max(edge * 1.4426950408889634, -3.0e38)
    skip_kernel[(batch * heads * tiles,)](
        q, k, v, out, lse, done, k_desc, v_desc, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        *out.stride()[:3], heads, heads // k.shape[1], tiles, s_q, k.shape[2], scale, limit,
        DIM=dim, DIM_V=dim_v, HEAD_DIM=head_dim, HEAD_DIM_V=head_dim_v, BLOCK_M=tile[0],
        BLOCK_N=tile[1], USE_TMA=v_desc is not None, IS_CAUSAL=causal, PRECISION=precision(),
        num_warps=8 if tile[0] > 64 and head_dim > 128 else 4, num_stages=STAGES,
    )  # fmt: skip
    return out, lse, done


def fits(q: Tensor, k: Tensor, v: Tensor, tile: tuple[int, int]) -> bool:
    """Return whether a GPU's shared memory holds a tile of queries and two of keys and values."""
    if q.device.type != "cuda":
        return True
    room = torch.cuda.get_device_properties(q.device).shared_memory_per_block_optin
    width = tile[0] * q.shape[3] + STAGES * tile[1] * (k.shape[3] + v.shape[3])
    return width * q.element_size() <= room


def _tiled(
    q: Tensor, k: Tensor, v: Tensor, edge: float, tile: tuple[int, int], causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute skipping_attention from the whole map, one query tile at a time."""
    group, (s_q, s_kv), (rows, cols) = q.shape[1] // k.shape[1], (q.shape[2], k.shape[2]), tile
    wide = torch.promote_types(q.dtype, torch.float32)
    keys, values = (x.to(wide).repeat_interleave(group, 1) for x in (k, v))
    key, outs = torch.arange(s_kv, device=q.device), []
    for at in range(0, s_q, rows):
        x = q[:, :, at : at + rows].to(wide)
        last = torch.arange(at, at + x.shape[2], device=q.device) + (s_kv - s_q)
        # keys that no query of the tile sees are not looked at
        stop = min(s_kv, max(at + x.shape[2] + s_kv - s_q, 1)) if causal else s_kv
        logits = scale * x @ keys[:, :, :stop].mT
        if causal:
            logits = logits.masked_fill(key[:stop] > last[:, None], float("-inf"))
        tiles = F.pad(logits, (0, -stop % cols), value=float("-inf")).unflatten(3, (-1, cols))
        peak = tiles.amax(4)
        # [B, H, N]: how far the best query of the tile is below its best before
        before = F.pad(peak.cummax(3).values, (1, 0), value=-1e38)[..., :-1]
        low = (peak - before).amax(2) < edge
        if causal:
            start = torch.arange(low.shape[2], device=q.device) * cols
            # a tile in the future counts as nothing
            low = (low & (start + cols - 1 <= last[0])) | (start > last[-1])
        logits = logits.masked_fill(
            low.repeat_interleave(cols, 2)[:, :, None, :stop], float("-inf")
        )
        lse = logits.logsumexp(-1)
        p = (logits - lse.masked_fill(lse.isinf(), 0)[..., None]).exp()
        outs.append((p @ values[:, :, :stop], lse, (~low).sum(2, keepdim=True)))
    out, lse, done = (torch.cat(parts, 2) for parts in zip(*outs, strict=True))
    return out.to(q.dtype), lse.float(), done.int()
