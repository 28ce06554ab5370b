"""Block-sparse attention in fp8 on Hopper GPUs: the launcher of the Gluon kernel.

    out_i = sum_{j kept} p_ij v_j / sum_j p_ij,  p_ij = e^{s q_i (k_j - mean)}

with q, k and v as quant.py writes them, and p in fp8 for its product with v; lse of the logits with
the mean. attention.py takes it for quant="fp8". Limits: those of hopper.py, no columns, and key
blocks of one size, a multiple of 16: values have their keys side by side in memory, and the copy
engine stops with an illegal instruction at an address that is no multiple of 16 bytes. Keys have
their scales by tiles of 128 where blocks are whole tiles, else by head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dit_sparse.kernels.choice import why_not_fp8
from dit_sparse.kernels.contract import Columns, Cut, as_cut
from dit_sparse.kernels.hopper import Config, describe, describe_rows, prepare, why_not
from dit_sparse.kernels.quant import TILE, has_tiles, quantise

# head dim -> configuration
_TABLE = {128: Config(128, 4, 1, False), 64: Config(128, 4, 1, False)}
# numbers that make up a query
TERMS = 2


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, kv_count: Tensor, kv_index: Tensor, *, q_blocks: Cut | int,
    kv_blocks: Cut | int, columns: Columns | None = None, tail: Tensor | None = None, row_mask:
    Tensor | None = None, causal: bool = False, scale: float | None = None, config: Config | None =
    None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Quantise and launch; arguments as in attention.py, `config` overrides the table (benchmarks).

    Raises ValueError with the reason where they cannot run.
    """
    q_cut, kv_cut = as_cut(q_blocks), as_cut(kv_blocks)
    reason = why_not(q, k, v, q_cut, kv_cut, columns, row_mask, causal)
    reason = reason or why_not_fp8("hopper", kv_cut, columns)
    if reason:
        raise ValueError(f"impl='hopper' cannot run in fp8: {reason}")
    from dit_sparse.kernels._hopper_fp8 import hopper_kernel

    config = config or _TABLE[q.shape[-1]]
    batch, heads, s_q, dim = q.shape
    s_kv = k.shape[2]
    scale = scale or dim**-0.5
    work, out, lse = prepare(q, s_kv, kv_count, kv_index, q_cut, kv_cut, causal, config, 32)
    # the boxes of a step have one scale
    by_tile = has_tiles(kv_cut)
    x = quantise(q, k, v, scale, by_tile=by_tile)
    table, tiles, unequal = work.table, work.tiles, q_cut.offsets is not None
    programs = torch.cuda.get_device_properties(q.device).multi_processor_count
    hopper_kernel[(min(programs, tiles),)](
        describe(x.q, 64, dim), describe(x.k, work.box, dim), describe(x.v, dim, work.box),
        describe(out, 64), describe_rows(x.kv_scale, 32), out, lse, x.q_scale, x.shift, work.whole,
        work.count, work.boxes, table, table[2 * tiles :], work.ends, heads, heads // k.shape[1],
        kv_count.shape[2], tiles, tiles // (batch * heads), s_q, s_kv, work.boxes.shape[3],
        TILE if by_tile else s_kv, x.kv_scale.shape[2], scale, *out.stride()[:3], DIM=dim,
        Q_SIZE=TILE if unequal else q_cut.size, BLOCK_N=config.block_n, BOX=work.box,
        STAGES=config.stages, IS_Q_UNIFORM=not unequal, HAS_SHORT=work.is_short, IS_CAUSAL=causal,
        TERMS=TERMS, num_warps=4, maxnreg=168,
    )  # fmt: skip
    return out, lse
