"""Listed columns, masks of single queries and query blocks of any size, in every form."""

import pytest
import torch

from dit_sparse.kernels import reference
from dit_sparse.kernels.attention import Columns, Cut, block_sparse_attention
from tests.kernel_cases import IMPLS, case, compare, offsets

RAGGED = Cut(40, offsets([7, 0, 40, 1, 20, 4], 2))
# bounds that say nothing, as clusters have them; some head begins and some ends with an empty one
LOOSE_Q = Cut(51, offsets([0, 33, 1, 17], 2))
LOOSE_KV = Cut(60, offsets([3, 0, 40, 17], 2))
# fmt: off
ROWS = {
    "group 1": {"columns": 37, "group": 1},
    "group 4 short last group": {"heads": 1, "columns": 37, "group": 4, "bias": False},
    "group 7": {"heads": 1, "columns": 60, "group": 7, "strided": True, "s_q": 50},
    "group 16": {"heads": 1, "columns": 100, "group": 16, "dtype": torch.bfloat16, "d": 128},
    "group beyond the columns": {"heads": 1, "columns": 5, "group": 9},
    "group 16 tail": {"heads": 1, "columns": 100, "group": 16, "tail": True, "dtype":
        torch.bfloat16},
    "group 1 tail dims": {"columns": 37, "group": 1, "tail": True, "d": 40, "dv": 64},
    "group 8 grouped heads": {"columns": 50, "group": 8, "heads": 4, "kv_heads": 2},
    "group 8 alone": {"heads": 1, "columns": 50, "group": 8, "keep": 0.0},
    "group 8 holds the maximum": {"heads": 1, "columns": 50, "group": 8, "gain": 8.0, "column_gain":
        4.0, "keep": 0.3, "tail": True},
    "group 8 causal": {"heads": 1, "columns": 50, "group": 8, "causal": True, "s_kv": 100},
    "group 1 causal, grouped, a past before": {"columns": 100, "group": 1, "causal": True, "s_kv":
        100, "heads": 4, "kv_heads": 2, "bias": False, "q_blocks": 64},
    "group 8 variable": {"columns": 50, "group": 8, "q_blocks": LOOSE_Q, "kv_blocks": LOOSE_KV,
        "s_q": 51, "s_kv": 60},
    "queries": {"per_query": 2},
    "queries shared by heads": {"per_query": 1, "heads": 4, "kv_heads": 2, "s_kv": 75},
    "queries large blocks": {"heads": 1, "per_query": 1, "kv_blocks": 200, "s_kv": 500, "q_blocks":
        128, "keep": 0.8, "dtype": torch.bfloat16},
    "queries whole tiles": {"heads": 1, "per_query": 1, "kv_blocks": 128, "s_kv": 300, "keep": 0.8,
        "dtype": torch.float16},
    "queries of many blocks": {"heads": 1, "per_query": 1, "kv_blocks": 4, "s_kv": 150, "q_blocks":
        80, "keep": 0.95},
    "queries variable": {"per_query": 2, "kv_blocks": RAGGED},
    "queries causal": {"per_query": 2, "causal": True, "s_kv": 100, "keep": 0.9},
    "queries causal variable": {"per_query": 1, "causal": True, "kv_blocks": RAGGED, "strided":
        True, "keep": 0.9},
    "queries in an order": {"per_query": 2, "orders": 2},
    "queries columns tail": {"heads": 1, "per_query": 1, "columns": 37, "tail": True, "kv_blocks":
        50},
    "queries listed columns": {"heads": 1, "per_query": 1, "columns": 37, "group": 4, "keep": 0.9},
    "clusters": {"q_blocks": LOOSE_Q, "kv_blocks": LOOSE_KV, "s_q": 51, "s_kv": 60},
    "clusters bf16 strided": {"q_blocks": LOOSE_Q, "kv_blocks": LOOSE_KV, "s_q": 51, "s_kv": 60,
        "dtype": torch.bfloat16, "d": 128, "strided": True, "keep": 0.9},
    "clusters of queries alone": {"q_blocks": LOOSE_Q, "s_q": 51, "s_kv": 60},
    "clusters of keys alone": {"kv_blocks": LOOSE_KV, "s_q": 51, "s_kv": 60},
    "clusters causal": {"q_blocks": LOOSE_Q, "kv_blocks": LOOSE_KV, "s_q": 51, "s_kv": 60, "causal":
        True, "keep": 0.9},
    "clusters queries columns tail": {"q_blocks": LOOSE_Q, "kv_blocks": LOOSE_KV, "s_q": 51, "s_kv":
        60, "per_query": 2, "columns": 9, "tail": True},
    "wide blocks": {"kv_blocks": Cut(300, offsets([130, 3, 167], 2)), "s_kv": 300, "keep": 0.9,
        "dtype": torch.bfloat16},
    "short cut": {"q_blocks": Cut(60, offsets([11, 20])), "kv_blocks": Cut(60, offsets([9, 31])),
        "keep": 0.9},
}
# fmt: on


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ROWS)
def test_attention(name, impl):
    """out and lse agree with the float64 oracle."""
    compare(ROWS[name], impl)


GRADIENTS = ["group 4 short last group", "group 1 tail dims", "queries columns tail", "clusters"]


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    """Backward through lists, masks of queries and clusters is the oracle's; opcheck passes."""
    tensors, lists, options = case(**{**ROWS[name], "bias": True})
    c, tail = options.pop("columns", None), options.pop("tail", None)
    extra = [x for x in (c and c.k, c and c.v, c and c.bias, tail) if x is not None]
    leaves = [x.detach().clone().requires_grad_() for x in (*tensors, *extra)]

    def call(run, *x):
        more = dict(options)
        if c is not None:
            more["columns"] = Columns(*x[3:6], c.mask, c.count, c.index, c.group)
        if tail is not None:
            more["tail"] = x[6]
        out, lse = run(*x[:3], *lists, **more)
        return out.square().sum() + lse.where(~lse.isinf(), 0).sum()

    runs = (block_sparse_attention, reference.block_sparse_attention)
    got, want = (torch.autograd.grad(call(run, *leaves), leaves) for run in runs)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)
    cuts = [getattr(options[x], y) for x in ("q_blocks", "kv_blocks") for y in ("size", "offsets")]
    columns = vars(c or Columns(None, None)).values()
    extra = (*columns, tail, options.get("row_mask"), None)
    args = (*tensors, *lists, *cuts, *extra, False, 0.1, "torch", "none")
    torch.library.opcheck(torch.ops.dit_sparse.block_sparse_attention.default, args)


def test_torch_costs_what_the_blocks_hold():
    """A loose bound of the block sizes changes neither the work nor a bit of the result."""
    from dit_sparse.kernels import gather

    tensors, lists, options = case(**ROWS["clusters"])
    tight = {x: Cut(40, options[x].offsets) for x in ("q_blocks", "kv_blocks")}
    with torch.autograd.profiler.profile() as loose_work:
        loose = gather.block_sparse_attention(*tensors, *lists, **options)
    with torch.autograd.profiler.profile() as tight_work:
        exact = gather.block_sparse_attention(*tensors, *lists, **options | tight)
    assert torch.equal(loose[0], exact[0]) and torch.equal(loose[1], exact[1])
    assert len(loose_work.function_events) == len(tight_work.function_events)


BAD = {
    "columns must": {"mask": torch.ones(2, 2, 3, 37, dtype=torch.bool)},
    "columns.count": {"count": torch.ones(2, 2, 3, dtype=torch.int64)},
    "columns.index": {"index": torch.ones(2, 2, 4, 5, dtype=torch.int32)},
    "columns.group": {"group": 0},
}


@pytest.mark.parametrize("word", [*BAD, "row_mask"])
def test_bad_arguments(word):
    """A broken list or mask gives one line that names it."""
    from dataclasses import replace

    (q, k, v), lists, options = case(columns=37, group=4)
    options["columns"] = replace(options["columns"], **BAD.get(word, {}))
    if word == "row_mask":
        options["row_mask"] = torch.ones(2, 2, 72, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match=word) as error:
        block_sparse_attention(q, k, v, *lists, **options)
    assert "\n" not in str(error.value) and str(error.value).startswith(word.split()[0])
