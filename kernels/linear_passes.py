"""Launch the Triton kernels of the linear branch.

    1. states   h and z of every key block, one pass over k and v
    2. choose   which blocks a query block sees, as 0 and 1, and Z
    3. H        = seen @ h, one product of the vendor's library per key head
    4. join     O_l, its projection and the sum with O_s, one pass over q and out

Without a choice 1 sums spans of tokens and torch sums their states; 2 and 3 are left out. Features,
h, H, O_l and W are bfloat16 for 2-byte tensors and float32 for others; sums, z and Z are float32.
Called by linear.py, which states formulas, shapes and users.
"""

# Triton's launch syntax, kernel[grid](...), has no types
# pyright: reportIndexIssue=false, reportCallIssue=false

import torch
import triton.language as tl
from torch import Tensor

from dit_sparse.kernels._launch import dense_rows, head_offsets, precision
from dit_sparse.kernels._linear import choose_kernel, join_kernel, state_kernel
from dit_sparse.kernels._tune import power_of_2
from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.linear import chunk

# tokens that one program sums when no block needs a sum of its own
SPAN = 1024


def _states(
    k: Tensor, v: Tensor, cut: Cut, blocks: int, dtype: torch.dtype, phi: str
) -> tuple[Tensor, Tensor]:
    """Return h [B, Hkv, N, D, Dv] of `blocks` = N blocks, zeros past those of k and v, and z
    [B, Hkv, N, D] float32."""
    (batch, heads, tokens, dim), dim_v = k.shape, v.shape[3]
    state = torch.empty(batch, heads, blocks, dim, dim_v, device=k.device, dtype=dtype)
    norm = torch.empty(batch, heads, blocks, dim, device=k.device, dtype=torch.float32)
    offsets, tile, stages = head_offsets(cut, k), *((32, 2) if _wide(k) else (64, 3))
    state_kernel[(batch * heads * blocks,)](
        k, v, state, norm, offsets, *k.stride()[:3], *v.stride()[:3], *offsets.stride()[:2], heads,
        cut.count(tokens), blocks, tokens, DTYPE=_dtype(k), DIM=dim, DIM_V=dim_v,
        BLOCK_D=power_of_2(dim), BLOCK_V=power_of_2(dim_v), SIZE=cut.size,
        TILE=min(tile, power_of_2(cut.size)), IS_UNIFORM=cut.offsets is None, PHI=phi,
        PRECISION=precision(), num_warps=8, num_stages=stages,
    )  # fmt: skip
    return state, norm


def _choose(seen: Tensor, part: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return seen [B, Hkv, R, N] as 0 and 1 [B, Hkv, R, padded], and its rows' sums of part
    [B, Hkv, padded, D], [B, Hkv, R, D] float32."""
    (batch, groups, rows, blocks), (padded, dim) = seen.shape, part.shape[2:]
    choice = torch.empty(batch, groups, rows, padded, device=seen.device, dtype=dtype)
    norm = torch.empty(batch, groups, rows, dim, device=seen.device, dtype=torch.float32)
    choose_kernel[(batch * groups * -(-rows // 32),)](
        seen, part, choice, norm, *seen.stride()[:2], groups, rows, blocks, padded,
        DTYPE=_dtype(choice), DIM=dim, BLOCK_D=power_of_2(dim), BLOCK_M=32, BLOCK_N=32 if
        _wide(choice) else 64, IS_HALVED=not _wide(choice), PRECISION=precision(), num_warps=4,
        num_stages=2,
    )  # fmt: skip
    return choice, norm


def _join(
    out: Tensor, q: Tensor, state: Tensor, norm: Tensor, cut: Cut, weight: Tensor | None, bias:
    Tensor | None, alpha: Tensor | None, phi: str, eps: float,
) -> None:  # fmt: skip
    """Add O_l to out in place; state: [B, Hs, M, D, Dv], norm: [B, Hs, M, D], H a multiple of
    Hs; weight None: there is none, or the state holds it."""
    (batch, heads, tokens, dim), dim_v = q.shape, out.shape[3]
    blocks, offsets, wide = cut.count(tokens), head_offsets(cut, q), _wide(q)
    # float32 in two steps of columns: shared memory holds each number as two
    columns = min(64 if wide else 128, power_of_2(dim_v))
    alphas = norm if alpha is None else alpha.float().expand(batch, heads, blocks)
    join_kernel[(batch * heads * blocks, -(-dim_v // columns))](
        out, q, state, norm, out if weight is None else weight, norm if bias is None else bias,
        alphas, offsets, *out.stride()[:3], *q.stride()[:3], *state.stride()[:3],
        *norm.stride()[:3], *alphas.stride()[:3], *offsets.stride()[:2], heads,
        heads // state.shape[1], blocks, tokens, eps, DTYPE=_dtype(q), DIM=dim, DIM_V=dim_v,
        BLOCK_D=power_of_2(dim), BLOCK_E=columns, SIZE=cut.size,
        TILE=min(32 if wide else 64, power_of_2(cut.size)), IS_UNIFORM=cut.offsets is None,
        HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, HAS_ALPHA=alpha is not None,
        PHI=phi, PRECISION=precision(), num_warps=8 if wide else 4, num_stages=1,
    )  # fmt: skip


def _wide(x: Tensor) -> bool:
    return x.element_size() > 2


def _dtype(x: Tensor) -> tl.dtype:
    """Return the type of features and states for tensors like x."""
    return tl.float32 if _wide(x) else tl.bfloat16


def add_linear(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, q_cut: Cut, kv_cut: Cut,
    weight: Tensor | None, bias: Tensor | None, alpha: Tensor | None, phi: str, eps: float,
    scratch: int,
) -> None:  # fmt: skip
    """Add the linear branch to `out` in place; see linear.add_linear. Buffers of the states take
    about `scratch` bytes, or those of one key head; where all keys are seen, one float32 state for
    each span of 1,024 keys."""
    q, k, v = dense_rows(q), dense_rows(k), dense_rows(v)
    dtype = torch.float32 if _wide(q) else torch.bfloat16
    bias = None if bias is None else bias.float().contiguous()
    (batch, heads, tokens, dim), groups, dim_v = q.shape, k.shape[1], v.shape[3]
    m = q_cut.count(tokens)
    if seen is None:
        spans = Cut(SPAN)
        state, norm = _states(k, v, spans, spans.count(k.shape[2]), torch.float32, phi)
        state, norm = state.sum(2, keepdim=True), norm.sum(2, keepdim=True)
        # phi(q) (H W^T): one product for each head instead of one for each block
        state = (state if weight is None else state @ weight.float().mT).to(dtype)
        state, norm = state.expand(-1, -1, m, -1, -1), norm.expand(-1, -1, m, -1)
        _join(out, q, state, norm, q_cut, None, bias, alpha, phi, eps)
        return
    weight = None if weight is None else weight.to(dtype).contiguous()
    group = heads // groups
    # rows of the choice start at multiples of 32 bytes, as the tensor cores like it
    padded = -(-kv_cut.count(k.shape[2]) // 16) * 16
    # [B, Hkv, G M, N]: the heads of a group share the states of their keys
    seen = seen.contiguous().view(torch.int8).unflatten(1, (groups, group)).flatten(2, 3)
    step = chunk(groups, batch * (padded + group * m) * dim * dim_v * dtype.itemsize, scratch)
    for at in range(0, groups, step):
        mine, theirs = slice(at, at + step), slice(at * group, (at + step) * group)
        kv_part, q_part = _of_heads(kv_cut, k, mine), _of_heads(q_cut, q, theirs)
        state, part = _states(k[:, mine], v[:, mine], kv_part, padded, dtype, phi)
        choice, norm = _choose(seen[:, mine], part, dtype)
        summed = (choice @ state.flatten(3)).view(batch, -1, m, dim, dim_v)
        last, norm = weight, norm.view(batch, -1, m, dim)
        if last is not None and _wide(q):
            # no room in shared memory for both products in float32
            summed, last = summed @ last.mT, None
        own = None if alpha is None else alpha.expand(batch, heads, m)[:, theirs]
        _join(out[:, theirs], q[:, theirs], summed, norm, q_part, last, bias, own, phi, 0.0)


def _of_heads(cut: Cut, x: Tensor, heads: slice) -> Cut:
    """Return the cut of some heads of x [B, H, S, .]."""
    return cut if cut.offsets is None else Cut(cut.size, head_offsets(cut, x)[:, heads])
