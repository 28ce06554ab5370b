"""Tiles that are left out on the way: what is computed, and how many of them."""

from math import log

import pytest
import torch

import dit_sparse
from dit_sparse.kernels import reference
from dit_sparse.kernels.skip import skipping_attention
from tests.kernel_cases import BOTH, DEVICE, close, normal

# fmt: off
ROWS = {
    "causal": {"causal": True},
    "causal, a past before": {"causal": True, "s_q": 70, "s_kv": 150},
    "causal, grouped, d 40": {"causal": True, "heads": 4, "kv_heads": 2, "d": 40, "dv": 24},
    "causal bf16": {"causal": True, "dtype": torch.bfloat16, "d": 128},
    "causal, no keys for the first": {"causal": True, "s_q": 90, "s_kv": 40},
    "not causal": {"s_kv": 150},
    "not causal fp16": {"dtype": torch.float16, "s_q": 40},
    "wide tiles": {"causal": True, "tile": (64, 32), "s_q": 150, "s_kv": 150},
    "everything": {"causal": True, "edge": float("-inf")},
    "almost nothing": {"edge": 0.0},
}
# fmt: on


def case(
    dtype=torch.float32, heads=2, kv_heads=None, d=64, dv=None, s_q=100, s_kv=None, causal=False,
    edge=-2.0, tile=(32, 16),
):  # fmt: skip
    """Return tensors and options; logits with a slope, so that some tiles stay far below."""
    s_kv, kv_heads = s_kv or s_q, kv_heads or heads
    q, k = normal(2, heads, s_q, d, seed=1) + 1, normal(2, kv_heads, s_kv, d, seed=2) * 0.5
    hill = torch.rand(2, kv_heads, -(-s_kv // 16), 1, device=DEVICE).double() * 3 * 8 / d
    k = k + (hill * d**0.5 / 4).repeat_interleave(16, 2)[:, :, :s_kv]
    v = normal(2, kv_heads, s_kv, dv or d, seed=3)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    return (q, k, v), {"edge": edge, "tile": tile, "causal": causal}


@pytest.mark.usefixtures("poison")
@BOTH
@pytest.mark.parametrize("name", ROWS)
def test_skip(name, impl):
    """out and lse agree with the float64 oracle over the tiles that it computes, as many."""
    tensors, options = case(**ROWS[name])
    dtype, (rows, cols) = tensors[0].dtype, options["tile"]
    out, lse, done = skipping_attention(*tensors, **options, impl=impl)
    wide = tuple(x.double() for x in tensors)
    exact = skipping_attention(*wide, **options, impl="torch")
    eager = skipping_attention(*(x.float() for x in tensors), **options, impl="torch")
    assert torch.equal(done, exact[2]) and out.dtype == dtype
    close(out, eager[0].to(dtype), exact[0], dtype)
    close(lse, eager[1], exact[1], dtype)
    tiles = -(-tensors[1].shape[2] // cols)
    if name == "everything":
        dense = reference.block_sparse_attention(
            *wide, *full_lists(wide, rows, cols), q_blocks=rows, kv_blocks=cols, causal=True
        )
        close(out, eager[0].to(dtype), dense[0], dtype)
    elif name != "causal, no keys for the first":
        assert 0.1 < done.sum() / (done.numel() * tiles) < 0.9


def full_lists(tensors, rows, cols):
    """Return lists of all blocks."""
    q, k, _ = tensors
    size = (*q.shape[:2], -(-q.shape[2] // rows), -(-k.shape[2] // cols))
    return reference.pack_lists(torch.ones(size, dtype=torch.bool, device=q.device))


@BOTH
def test_it_is_what_blasst_chooses(impl):
    """The same tiles as the choice before the kernel, from the same logits; the method calls it."""
    tensors, options = case(causal=True, s_q=192)
    factor = 192 * torch.tensor(options["edge"]).exp().item()
    method = dit_sparse.get("blasst", factor=factor, block=options["tile"])
    want = dit_sparse.attention(*tensors, method, causal=True, impl="reference")
    options["edge"] = log(factor / 192)
    out, _, done = skipping_attention(*tensors, **options, impl=impl)
    every = torch.arange(1, 7).mul(2).sum() * 4
    assert (out - want).abs().max() < 1e-5 and done.sum() < 0.9 * every
    called = dit_sparse.attention(*tensors, method, causal=True, impl=impl)
    assert torch.equal(called, out)


def test_a_smaller_edge_computes_more():
    tensors, options = case(causal=True)
    counts = [
        skipping_attention(*tensors, **options | {"edge": edge}, impl="torch")[2].sum().item()
        for edge in (0.0, -1.0, -3.0, -9.0, float("-inf"))
    ]
    assert counts == sorted(counts) and counts[0] < counts[-1]


BAD = {"edge": 0.5, "tile": (100, 64), "scale": -1.0}


@pytest.mark.parametrize("word", [*BAD, "k ", "q "])
def test_bad_arguments(word):
    """A broken call gives one line that begins with the argument."""
    (q, k, v), options = case()
    q = q[0] if word == "q " else q
    k = k[:, :, :, :8] if word == "k " else k
    options |= {word: BAD[word]} if word in BAD else {}
    with pytest.raises(ValueError, match=f"^{word}") as error:
        skipping_attention(q, k, v, **options)
    assert "\n" not in str(error.value)
