"""The CPU's way of impl "torch" for short lists, against the oracle and the general way."""

import pytest
import torch

from dit_sparse.kernels import _cached, gather, reference
from dit_sparse.kernels.attention import Columns, Cut, block_sparse_attention
from tests.kernel_cases import case, offsets, wide

BOXES_Q, BOXES_KV = Cut(20, offsets([18, 20, 15, 19], 2)), Cut(20, offsets([20, 16, 20, 16], 2))
# fmt: off
ROWS = {
    "short last block": {"s_q": 75, "s_kv": 85, "shuffle": True, "keep": 1.0},
    "runs of one token": {"s_q": 75, "s_kv": 85, "q_blocks": 64, "kv_blocks": 24},
    "blocks of several tiles": {"s_q": 300, "s_kv": 300, "q_blocks": 150, "kv_blocks": 100},
    "boxes": {"q_blocks": BOXES_Q, "kv_blocks": BOXES_KV, "strided": True},
    "boxes, columns, tail": {"q_blocks": BOXES_Q, "kv_blocks": BOXES_KV, "columns": 9,
        "tail": True},
    "one box": {"s_q": 30, "s_kv": 30, "q_blocks": Cut(36, offsets([30], 2)), "kv_blocks": Cut(36,
        offsets([30], 2))},
    "grouped heads": {"heads": 4, "kv_heads": 2, "columns": 9, "tail": True, "strided": True},
    "columns, few keys": {"columns": 64, "q_blocks": 8, "kv_blocks": 8, "keep": 0.2},
    "columns alone": {"columns": 9, "keep": 0.0},
    "nothing kept": {"keep": 0.0},
    "wide values": {"d": 24, "dv": 40, "columns": 9},
}
# fmt: on


def call(row, dtype):
    tensors, lists, options = case(**row)
    tensors, options = (
        [wide(x) for x in tensors],
        {name: wide(x) for name, x in options.items()},
    )
    options["tail"] = options.get("tail")
    options["columns"] = options.get("columns")
    if dtype == torch.float32:
        tensors = [x.float() for x in tensors]
        c = options["columns"]
        if c is not None:
            options["columns"] = Columns(c.k.float(), c.v.float(), c.bias.float(), c.mask)
        options["tail"] = None if options["tail"] is None else options["tail"].float()
    return tensors, lists, options


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("chunk", [1, 2 << 20])
@pytest.mark.parametrize("name", ROWS)
def test_equals_the_oracle_and_the_general_way(name, chunk, monkeypatch):
    """In float64 all three agree to rounding, one row at a time or all at once."""
    monkeypatch.setattr(_cached, "CHUNK", chunk)
    tensors, lists, options = call(ROWS[name], torch.float64)
    want = reference.block_sparse_attention(*tensors, *lists, **options)
    for scratch in (None, 1):
        got = gather.block_sparse_attention(*tensors, *lists, **options, scratch_mb=scratch)
        for a, b in zip(got, want, strict=True):
            # lse is float32 by contract
            error = 1e-12 if a.dtype == torch.float64 else 1e-6
            torch.testing.assert_close(a.double(), b.double(), rtol=error, atol=error)


@pytest.mark.parametrize("name", ROWS)
def test_is_taken_where_it_serves(name, monkeypatch):
    """These calls come here; one that wants gradients, and one beyond the cache, do not."""
    tensors, lists, options = call(ROWS[name], torch.float32)
    seen = []
    monkeypatch.setattr(_cached, "block_sparse_attention", lambda *x, **y: seen.append(x))
    gather.block_sparse_attention(*tensors, *lists, **options)
    assert len(seen) == 1
    leaf = [tensors[0].requires_grad_(), *tensors[1:]]
    gather.block_sparse_attention(*leaf, *lists, **options)
    assert len(seen) == 1
    monkeypatch.setattr(_cached, "LOGITS", -1)
    with torch.no_grad():
        gather.block_sparse_attention(*leaf, *lists, **options)
    assert len(seen) == 1


def test_keys_of_no_list_may_hold_anything():
    """A block that nobody lists, full of NaN, stands between boxes of unlike sizes."""
    (q, k, v), _, options = case(q_blocks=BOXES_Q, kv_blocks=Cut(20, offsets([20, 16, 20, 16])))
    k[:, :, 20:36] = float("nan")
    count = torch.full((2, 2, 4), 3, dtype=torch.int32)
    index = torch.tensor([0, 2, 3, 0], dtype=torch.int32).expand(2, 2, 4, 4)
    out, lse = block_sparse_attention(q, k, v, count, index, **options)
    rest = [torch.cat((x[:, :, :20], x[:, :, 36:]), 2) for x in (k, v)]
    full = torch.nn.functional.scaled_dot_product_attention(q.double(), *(x.double() for x in rest))
    torch.testing.assert_close(out.double(), full, rtol=1e-5, atol=1e-5)
    assert lse.isfinite().all()
