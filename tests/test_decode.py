"""Attention of one new query to listed pages, and the scores of pages, against float64."""

from dataclasses import replace

import pytest
import torch

import dit_sparse
from dit_sparse.compute.attend import decodes
from dit_sparse.core import QKV, Context
from dit_sparse.kernels import reference
from dit_sparse.kernels.decode import Config, decode_attention, page_scores
from tests.kernel_cases import BOTH, DEVICE, close, normal, wide
from tests.test_text_methods import SMALL

# fmt: off
ROWS = {
    "group 4": {},
    "group 1, d 40": {"heads": 2, "d": 40, "dv": 24},
    "group 20 bf16": {"heads": 40, "dtype": torch.bfloat16, "d": 128},
    "one share": {"splits": 1, "dtype": torch.float16},
    "more shares than tiles": {"splits": 9, "tokens": 40},
    "a page of 128": {"page": 128, "tokens": 300, "splits": 2},
    "a page of 24": {"page": 24, "splits": 2},
    "own choices": {"choice": True, "splits": 2},
    "own choices, pages anywhere": {"choice": True, "paged": True, "splits": 3},
    "pages anywhere": {"paged": True, "dtype": torch.bfloat16},
    "lengths": {"lengths": True, "splits": 2},
    "lengths, pages anywhere": {"lengths": True, "paged": True},
    "strided": {"strided": True, "splits": 2},
    "large logits": {"gain": 8.0, "splits": 2},
    "few": {"keep": 0.02, "splits": 4},
}
# fmt: on


def case(
    dtype=torch.float32, heads=8, kv_heads=2, d=64, dv=None, tokens=120, page=16, keep=0.5,
    gain=1.0, choice=False, paged=False, lengths=False, strided=False, splits=None,
):  # fmt: skip
    """Return tensors, lists and options of one call; what must not be read is NaN."""
    dv, pages = dv or d, -(-tokens // page)
    q = normal(2, heads, 1, d, seed=1) * gain
    k, v = (normal(2, kv_heads, pages * page, n, seed=n) for n in (d, dv))
    ends = torch.tensor([tokens, tokens - page - 3], dtype=torch.int32, device=DEVICE)
    for x in (k, v):
        x[:, :, tokens:] = float("nan")
        if lengths:
            x[1, :, ends[1] :] = float("nan")
    options = {"page": page}
    if lengths or paged:
        options["lengths"] = ends if lengths else torch.full_like(ends, tokens)
    chosen = torch.rand(2, kv_heads, 1, pages, device=DEVICE) < keep
    # somebody sees the short last page, and a sequence's first head nothing
    chosen[0, -1, :, -1], chosen[1, 0] = True, False
    count, index = reference.pack_lists(chosen)
    past = torch.arange(pages, device=DEVICE) >= count[..., None]
    index = index.masked_fill(past, 1 << 20)
    if choice:
        options["choice"] = torch.rand(2, heads, pages, device=DEVICE) < 0.6
    if paged:
        # the pages of both sequences in one heap, among others of nobody
        table = torch.randperm(2 * pages + 3)[: 2 * pages].view(2, pages).int().to(DEVICE)
        heaps = []
        for x in (k, v):
            heap = x.new_full((2 * pages + 3, kv_heads, page, x.shape[3]), float("nan"))
            heap[table.long()] = x.unflatten(2, (pages, page)).transpose(1, 2)
            heaps.append(heap)
        (k, v), options["table"] = heaps, table
    else:
        k, v = k[:, :, :tokens], v[:, :, :tokens]
    q, k, v = (x.to(dtype) for x in (q, k, v))
    if strided:
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    return (q, k, v), (count, index), options, {"splits": splits}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("impl", ["triton", "torch", "reference"])
@pytest.mark.parametrize("name", ROWS)
def test_decode(name, impl):
    """out and lse agree with the oracle; a head that sees nothing gives 0 and -inf."""
    tensors, lists, options, own = case(**ROWS[name])
    dtype = tensors[0].dtype
    out, lse = decode_attention(*tensors, *lists, **options, **own, impl=impl)
    # the oracle multiplies what a list leaves out by 0
    finite = tuple(x.nan_to_num(0.0) for x in tensors)
    exact = reference.decode_attention(*map(wide, finite), *lists, **options)
    eager = reference.decode_attention(*finite, *lists, **options, math_dtype=dtype)
    assert out.dtype == dtype and lse.dtype == torch.float32 and out.shape == exact[0].shape
    close(out, eager[0], exact[0], dtype)
    close(lse, eager[1], exact[1], dtype)
    assert (lse[1, 0] == float("-inf")).all() and not out[1, 0].any()


def test_shares_change_nothing_but_rounding():
    """Any number of shares and any tile give the same sum; twice the same bits."""
    tensors, lists, options, _ = case(heads=4)
    one, _ = decode_attention(*tensors, *lists, **options, splits=1, impl="triton")
    for splits, block in ((2, 16), (5, 32), (9, 64)):
        more = {"splits": splits, "config": Config(block), "impl": "triton"}
        outs = [decode_attention(*tensors, *lists, **options, **more)[0] for _ in range(2)]
        assert torch.equal(*outs) and (outs[0] - one).abs().max() < 2e-6


def test_the_order_of_pages_is_free():
    """A list of all pages in any order is dense attention."""
    (q, k, v), _, options, _ = case(tokens=160)
    index = torch.stack([torch.randperm(10) for _ in range(4)]).view(2, 2, 1, 10).int().to(DEVICE)
    count = torch.full((2, 2, 1), 10, dtype=torch.int32, device=DEVICE)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    for impl in ("triton", "torch", "reference"):
        for given in (count, None):
            out, _ = decode_attention(q, k, v, given, index, **options, splits=3, impl=impl)
            assert (out - dense).abs().max() < 2e-6


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads, kv_heads, tokens, page, d", [
    (8, 2, 200, 16, 64), (3, 3, 70, 1, 40), (12, 1, 130, 24, 128), (2, 2, 300, 128, 64),
])  # fmt: skip
def test_page_scores(impl, dtype, heads, kv_heads, tokens, page, d):
    """Scores are those of the means in float64, to the rounding of float32 sums."""
    q, k = (normal(2, n, s, d).to(dtype) for n, s in ((heads, 1), (kv_heads, tokens)))
    got = page_scores(q, k, page=page, impl=impl)
    exact = reference.page_scores(q.double(), k.double(), page=page)
    near = reference.page_scores(q, k, page=page)
    assert got.dtype == torch.float32
    close(got, near, exact, torch.float32)


@pytest.mark.parametrize("name, kv_heads", [("block_topk", 2), ("blasst", 4)])
def test_a_method_decodes_through_it(name, kv_heads):
    """One query takes this kernel, two do not, nor do gradients; the output is that of torch."""
    method = dit_sparse.get(name, **SMALL[name])
    q, k, v = (normal(2, n, s, 16, seed=s).float() for n, s in ((4, 1), *[(kv_heads, 90)] * 2))

    def call(x, impl):
        ctx = Context(causal=True, impl=impl)
        out = method.compute(x, method.plan(x, ctx), ctx)
        return out, ctx.cache["kernel"][1].startswith("one query")

    outs = []
    for impl in ("triton", "torch"):
        out, is_own = call(QKV(q, k, v), impl)
        outs.append(out)
        assert is_own == (impl == "triton")
    # sums of at most 90 terms in another order
    assert (outs[0] - outs[1]).abs().max() < 90 * 2**-23 * v.abs().max()
    for x in (QKV(q.repeat(1, 1, 2, 1), k, v), QKV(q, k, v.clone().requires_grad_())):
        ctx = Context(causal=True, impl="triton")
        assert not decodes(x, method.plan(x, replace(ctx, impl="torch")), ctx)


BAD = {
    "q ": lambda x: {"q": x["q"].expand(-1, -1, 2, -1)},
    "k ": lambda x: {"k": x["k"][:, :, :, :8]},
    "v ": lambda x: {"v": x["v"].half()},
    "kv_count": lambda x: {"kv_count": x["kv_count"].long()},
    "kv_index": lambda x: {"kv_index": x["kv_index"][:, :1]},
    "page": lambda x: {"page": 0},
    "choice": lambda x: {"choice": torch.ones(2, 8, 3, dtype=torch.bool)},
    "table": lambda x: {"table": torch.ones(3, 4, dtype=torch.int32)},
    "lengths": lambda x: {"lengths": torch.ones(3, dtype=torch.int32)},
    "scale": lambda x: {"scale": float("nan")},
    "splits": lambda x: {"splits": 0},
    "kv_index ": lambda x: {"kv_index": None},
    "table ": lambda x: {"table": torch.tensor(1)},
}
SCORED = {
    "q": {"q": None},
    "k": {"k": None},
    "k must": {"k": torch.ones(1, 2, 40, 64)},
    "page": {"page": 2.5},
}


@pytest.mark.parametrize("word", BAD)
def test_bad_arguments(word):
    """A broken call gives one line that begins with the argument."""
    (q, k, v), (count, index), options, _ = case()
    call = {"q": q, "k": k, "v": v, "kv_count": count, "kv_index": index, **options}
    with pytest.raises(ValueError, match=f"^{word}") as error:
        decode_attention(**call | BAD[word](call))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("word", SCORED)
def test_bad_arguments_of_scores(word):
    call = {"q": torch.ones(2, 4, 1, 64), "k": torch.ones(2, 2, 40, 64), "page": 16}
    with pytest.raises(ValueError, match=f"^{word}") as error:
        page_scores(**call | SCORED[word])
    assert "\n" not in str(error.value)
