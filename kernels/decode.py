"""Decoding: the new query of each sequence over listed pages of its cache, and scores of pages.

    out_h = sum_{j in listed pages} e^{s q_h k_j} v_j / Z_h,    lse_h = log Z_h
    score_p = (1 / G) sum_h q_h . (1 / n_p) sum_{t in p} k_t

h runs over the G query heads of a key head, which share one list; each may leave pages of it out.
The cache is one piece per sequence, or pages in any place that a table names. The list is split
among as many programs as fill the device, whose results are merged by their log-sum-exps in a
second launch; every sum has a fixed order. No sync, no shape that depends on data. Used by the
methods for decoding. The kernels are in _decode.py.
Limits of Triton: head dims up to 256, no float64, no gradients; ids must be in range.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_sparse.kernels.contract import _fail, _shaped, allocate, as_scale
from dit_sparse.kernels.pool import pick, pool_blocks

# programs of a launch for each multiprocessor, and listed tokens that each has at least
# one H200, Triton 3.6, 32 / 8 heads of 128, a tenth of 131,072 keys in pages of 16: with 1, 2, 3, 4
# programs 31.2, 28.4, 29.0, 30.8 us for one sequence, 317, 214, 215, 259 for 16
PROGRAMS, LEAST = 2, 256
MOST_SPLITS = 64


@dataclass(frozen=True)
class Config:
    """One launch configuration: keys a step, warps, stages of the pipeline.

    Measured as PROGRAMS were, 1 and 16 sequences: 64 keys, 4 warps, 3 stages 28.4, 214 us; with 4
    stages 30.4, 215; 32 keys with 4 29.7, 244; 128 keys with 2 29.7, 214; with 8 warps 35.7, 280.
    """

    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 3


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_count: Tensor | None,
    kv_index: Tensor,
    *,
    page: int,
    choice: Tensor | None = None,
    table: Tensor | None = None,
    lengths: Tensor | None = None,
    scale: float | None = None,
    splits: int | None = None,
    config: Config | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend the one query of each sequence to the listed pages of its keys.

    q: [B, H, 1, D]; k: [B, Hkv, S, D], v: [B, Hkv, S, Dv], finite; or with `table` pages
        [P, Hkv, page, D] and [P, Hkv, page, Dv]
    kv_count: [B, Hkv, 1] int32 listed pages of each key head, None for C; kv_index: [B, Hkv, 1, C]
        int32 their distinct ids, packed left, in any order
    choice: None or bool/int8 [B, H, N], which of the listed pages a query head sees
    table: None or int32 [B, N], where the pages of a sequence stand in k and v
    lengths: None or int32 [B], the tokens of each sequence; those behind are not seen
    scale: default D ** -0.5; splits, config: override what fills the device (benchmarks)
    impl: auto, triton, torch or reference
    returns: out [B, H, 1, Dv] in q's dtype, lse [B, H, 1] float32 (natural log); a head that sees
        nothing gives 0 and -inf

    >>> q, (k, v) = torch.randn(1, 4, 1, 64), torch.randn(2, 1, 2, 64, 64)
    >>> count = torch.full((1, 2, 1), 2, dtype=torch.int32)
    >>> index = torch.tensor([0, 3], dtype=torch.int32).expand(1, 2, 1, 2)
    >>> out, lse = decode_attention(q, k, v, count, index, page=16)
    """
    _check(q, k, v, kv_count, kv_index, page, choice, table, lengths)
    if splits is not None:
        _count("splits", splits)
    scale = as_scale(scale, q.shape[-1])
    if impl == "reference":
        from dit_sparse.kernels import reference

        call, more = reference.decode_attention, {}
    elif pick(q, impl, k, v, limit=256) == "triton":
        call, more = _launch, {"splits": splits, "config": config or Config()}
    else:
        call, more = _gather, {}
    return call(
        q, k, v, kv_count, kv_index, page=page, choice=choice, table=table, lengths=lengths,
        scale=scale, **more,
    )  # fmt: skip


def page_scores(q: Tensor, k: Tensor, *, page: int, impl: str = "auto") -> Tensor:
    """Return the mean over a group's query heads of q . mean(page of k), [B, Hkv, 1, N] float32.

    q: [B, H, 1, D]; k: [B, Hkv, S, D], or means that were kept, with page=1. The last page may be
    short. One pass over k; the means are not written.

    >>> page_scores(torch.ones(1, 2, 1, 4), torch.ones(1, 1, 3, 4), page=2).tolist()
    [[[[4.0, 4.0]]]]
    """
    heads = _heads(q, k)
    _shaped("q", q, q.shape[0], q.shape[1], 1, q.shape[3])
    _shaped("k", k, q.shape[0], heads, k.shape[2], q.shape[3], dtype=q.dtype)
    _count("page", page)
    if pick(q, impl, k, limit=256) == "torch":
        wide = torch.promote_types(q.dtype, torch.float32)
        mean = q.unflatten(1, (heads, -1)).to(wide).mean(2)
        return (mean @ pool_blocks(k, page, dtype=wide, impl="torch").mT).to(wide)
    from dit_sparse.kernels._decode import score_kernel
    from dit_sparse.kernels._launch import dense_rows
    from dit_sparse.kernels._tune import power_of_2

    q, k = dense_rows(q), dense_rows(k)
    batch, group, (tokens, dim) = q.shape[0], q.shape[1] // heads, k.shape[2:]
    # as many pages as make a tile of 64 tokens, each padded to a power of two
    width = 1 << (page - 1).bit_length()
    pages, some = -(-tokens // page), max(1, 64 // width)
    out = torch.empty(batch, heads, 1, pages, device=q.device, dtype=torch.float32)
    score_kernel[(-(-pages // some), batch * heads)](
        q, k, out, *q.stride()[:2], *k.stride()[:3], heads, group, tokens, pages, DIM=dim,
        HEAD_DIM=power_of_2(dim), PAGE=page, PAGES=some, WIDTH=width, BLOCK_M=power_of_2(group),
        num_warps=4,
    )  # fmt: skip
    return out


def _check(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor | None, kv_index: Tensor, page: int, choice:
    Tensor | None, table: Tensor | None, lengths: Tensor | None,
) -> None:  # fmt: skip
    """Raise one line naming the argument if the call breaks the contract; reads no device data."""
    (batch, heads, _, dim), kv_heads = q.shape, _heads(q, k, v)
    _count("page", page)
    if table is not None:
        _shaped("table", table, batch, _width(table), dtype=torch.int32)
    rows, tokens = (batch, k.shape[2]) if table is None else (k.shape[0], page)
    pages = -(-tokens // page) if table is None else table.shape[-1]
    _shaped("q", q, batch, heads, 1, dim)
    _shaped("k", k, rows, kv_heads, tokens, dim, dtype=q.dtype)
    _shaped("v", v, rows, kv_heads, tokens, v.shape[3], dtype=q.dtype)
    if kv_count is not None:
        _shaped("kv_count", kv_count, batch, kv_heads, 1, dtype=torch.int32)
    _shaped("kv_index", kv_index, batch, kv_heads, 1, _width(kv_index), dtype=torch.int32)
    if choice is not None:
        _shaped("choice", choice, batch, heads, pages, dtype=(torch.bool, torch.int8))
    if lengths is not None:
        _shaped("lengths", lengths, batch, dtype=torch.int32)


def _heads(q: Tensor, *more: Tensor) -> int:
    """Return the number of key heads; raise unless q and `more`, k and v, are such tensors."""
    for name, x in zip("qkv", (q, *more), strict=False):
        if not isinstance(x, Tensor) or x.dim() != 4 or not x.is_floating_point():
            _fail(name, "a floating 4-D tensor", x)
    heads, k = q.shape[1], more[0]
    if not k.shape[1] or heads % k.shape[1]:
        _fail("k", f"of a head count that divides q's {heads}", k)
    return k.shape[1]


def _count(name: str, x: object) -> None:
    """Raise unless x is a positive number of things."""
    if type(x) is not int or x < 1:
        _fail(name, "a whole number, at least 1", x)


def _width(x: object) -> object:
    """Return the size of the last axis, any for what is no such tensor."""
    return x.shape[-1] if isinstance(x, Tensor) and x.dim() else "any"


@functools.cache
def _device(index: int) -> tuple[int, bool]:
    """Return (multiprocessors, whether a launch may begin before the last one ended)."""
    nvidia = torch.version.hip is None
    early = nvidia and torch.cuda.get_device_capability(index) >= (9, 0)
    return torch.cuda.get_device_properties(index).multi_processor_count, early


def _launch(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor | None, kv_index: Tensor, *, page: int,
    choice: Tensor | None, table: Tensor | None, lengths: Tensor | None, scale: float, splits: int |
    None, config: Config,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch decode_kernel, and merge_kernel where the list was split."""
    from dit_sparse.kernels._decode import decode_kernel, merge_kernel
    from dit_sparse.kernels._launch import dense_rows, precision
    from dit_sparse.kernels._tune import power_of_2

    q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
    (batch, heads, _, dim), kv_heads, dim_v = q.shape, k.shape[1], v.shape[3]
    kv_index = kv_index.contiguous()
    count = kv_index if kv_count is None else kv_count.contiguous()
    capacity, tokens = kv_index.shape[-1], k.shape[2]
    processors, early = _device(q.device.index or 0) if q.is_cuda else (1, False)
    if splits is None:
        room = PROGRAMS * processors
        most = min(MOST_SPLITS, room // (batch * kv_heads), -(-capacity * page // LEAST))
        splits = max(1, most)
    # strides between sequences and between pages
    where = [(x.stride(0), page * x.stride(2)) for x in (k, v)]
    if table is not None:
        tokens = table.shape[-1] * page
        where = [(0, x.stride(0)) for x in (k, v)]
    (stride_kb, stride_kp), (stride_vb, stride_vp) = where
    out, lse = allocate(q, dim_v)
    part, height = out, lse
    parts, heights = (*out.stride()[:2], 0), (heads, 1)
    if splits > 1:
        f32 = {"device": q.device, "dtype": torch.float32}
        part = torch.empty(batch, heads, splits, dim_v, **f32)
        height = torch.empty(batch, heads, splits, **f32)
        parts, heights = part.stride()[:3], height.stride()[:2]
    own = kv_index if choice is None else dense_rows(choice).view(torch.int8)
    places = kv_index if table is None else dense_rows(table)
    group = heads // kv_heads
    decode_kernel[(batch * kv_heads * splits,)](
        q, k, v, part, height, count, kv_index, places, kv_index if lengths is None else
        lengths.contiguous(), own, *q.stride()[:2], stride_kb, k.stride(1), stride_kp, k.stride(2),
        stride_vb, v.stride(1), stride_vp, v.stride(2), *parts, *heights, *own.stride()[:2],
        places.stride(0), kv_heads, group, capacity, tokens, splits, scale, DIM=dim, DIM_V=dim_v,
        HEAD_DIM=power_of_2(dim), HEAD_DIM_V=power_of_2(dim_v), PAGE=page, BLOCK_M=power_of_2(
        group), BLOCK_N=config.block_n, HAS_COUNT=kv_count is not None, HAS_TABLE=table is not
        None, HAS_LENGTHS=lengths is not None, HAS_CHOICE=choice is not None, HAS_EARLY=early and
        splits > 1, PRECISION=precision(), num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    if splits > 1:
        options = {"launch_pdl": True} if early else {}
        merge_kernel[(batch * heads,)](
            part, height, out, lse, *out.stride()[:2], heads, splits, DIM_V=dim_v, HEAD_DIM_V=
            power_of_2(dim_v), SPLITS=power_of_2(splits), HAS_EARLY=early, num_warps=4, **options,
        )  # fmt: skip
    return out, lse


def _gather(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor | None, kv_index: Tensor, *, page: int,
    choice: Tensor | None, table: Tensor | None, lengths: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute decode_attention in plain torch: gather the listed pages, attend to them."""
    batch, kv_heads = kv_index.shape[:2]
    if kv_count is None:
        kv_count = kv_index.new_full(kv_index.shape[:3], kv_index.shape[3])
    page_id = kv_index[:, :, 0].long()
    tokens = k.shape[2] if table is None else table.shape[-1] * page
    # unused entries of a list name no page
    used = torch.arange(page_id.shape[-1], device=q.device) < kv_count
    page_id = page_id.where(used, 0)
    inner = torch.arange(page, device=q.device)
    token = (page_id[..., None] * page + inner).flatten(2)
    seen = used.repeat_interleave(page, 2) & (token < tokens)
    if lengths is not None:
        seen = seen & (token < lengths[:, None, None])
    head = torch.arange(kv_heads, device=q.device)[:, None]
    if table is None:
        at = torch.arange(batch, device=q.device)[:, None, None], head, token.clamp(max=tokens - 1)
    else:
        place = table.long()[torch.arange(batch, device=q.device)[:, None, None], page_id]
        at = place.repeat_interleave(page, 2), head, token % page
    wide = torch.promote_types(q.dtype, torch.float32)
    keys, values = (x[at].to(wide) for x in (k, v))
    # [B, Hkv, G, C * page]: heads of one key head side by side
    rows = q[:, :, 0].unflatten(1, (kv_heads, -1)).to(wide)
    mask = seen[:, :, None]
    if choice is not None:
        listed = page_id.repeat_interleave(q.shape[1] // kv_heads, 1)
        own = (choice != 0).gather(2, listed).repeat_interleave(page, 2)
        mask = mask & own.unflatten(1, (kv_heads, -1))
    logits = (scale * rows @ keys.mT).masked_fill(~mask, float("-inf"))
    lse = logits.logsumexp(-1)
    p = (logits - lse.masked_fill(lse.isinf(), 0)[..., None]).exp()
    out = p @ values.masked_fill(~seen[..., None], 0)
    return out.flatten(1, 2)[:, :, None].to(q.dtype), lse.flatten(1, 2)[..., None].float()
