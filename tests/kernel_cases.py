"""Random calls of the attention kernels, and the derived tolerance that judges them."""

from dataclasses import replace

import pytest
import torch

from dit_sparse.kernels import reference
from dit_sparse.kernels.attention import Columns, Cut, block_sparse_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLS = ("triton", "torch", "reference")
# the forms of a kernel that is its own reference
BOTH = pytest.mark.parametrize("impl", ["triton", "torch"])


def normal(*shape, seed=0):
    """Draw float64 standard normals, the same numbers on every device."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(DEVICE)


def offsets(sizes, heads=1):
    """Return int32 offsets [1, heads, N + 1] of blocks of the given sizes, rolled by one for each
    further head."""
    rolled = [sizes[h:] + sizes[:h] for h in range(heads)]
    return torch.nn.functional.pad(torch.tensor([rolled], device=DEVICE).cumsum(-1), (1, 0)).int()


def case(
    dtype=torch.float32, d=64, dv=None, heads=2, kv_heads=None, s_q=72, s_kv=None, q_blocks=32,
    kv_blocks=32, keep=0.5, capacity=None, strided=False, columns=0, bias=True, mask=True,
    tail=False, causal=False, gain=1.0, column_gain=1.0, shuffle=False, group=0, per_query=0,
    orders=0,
):  # fmt: skip
    """Build one call: (tensors, lists, options).

    group: the columns are listed in groups of so many instead of masked; per_query: heads of a
    mask of single queries, 0 for none; orders: heads of the order that queries are read in.
    """
    kv_heads, s_kv, dv = kv_heads or heads, s_kv or s_q, dv or d
    q_cut, kv_cut = (x if isinstance(x, Cut) else Cut(x) for x in (q_blocks, kv_blocks))

    def draw(h, s, n, scale=1.0):
        # a margin of nan around the view: nothing outside it may be read into the result
        x = torch.full(
            (2, s + 40, h, n + 8) if strided else (2, h, s, n),
            float("nan"),
            dtype=dtype,
            device=DEVICE,
        )
        x = x[:, 16 : 16 + s, :, :n].transpose(1, 2) if strided else x
        return x.copy_(torch.randn(2, h, s, n) * scale)

    q, k, v = draw(heads, s_q, d, gain), draw(kv_heads, s_kv, d), draw(kv_heads, s_kv, dv)
    m, n = q_cut.count(s_q), kv_cut.count(s_kv)
    chosen = torch.rand(2, heads, m, n, device=DEVICE) < keep
    chosen[:, 0, 0], chosen[:, -1, -1] = False, True
    count, index = reference.pack_lists(chosen, capacity)
    if shuffle:
        index = (
            torch.stack([index[..., i] for i in torch.randperm(n)], -1)
            if keep == 1
            else index.flip(-1)
        )
        count = torch.full_like(count, n) if keep == 1 else count
    options = {"q_blocks": q_cut, "kv_blocks": kv_cut, "causal": causal}
    if columns:
        shown = (torch.rand(2, heads, m, columns, device=DEVICE) < 0.6) if mask else None
        if shown is not None:
            shown[:, 0, 0] = False
        extra = torch.randn(2, heads, columns, device=DEVICE) if bias else None
        options["columns"] = Columns(
            draw(kv_heads, columns, d, column_gain), draw(kv_heads, columns, dv), extra, shown
        )
    if group:
        seen = torch.rand(2, heads, m, -(-columns // group), device=DEVICE) < 0.4
        seen[:, 0, 0], seen[:, -1, -1] = False, True
        length, listed = reference.pack_lists(seen)
        # places past the count are never read
        past = torch.arange(listed.shape[-1], device=DEVICE) >= length[..., None]
        c = options["columns"]
        options["columns"] = Columns(
            c.k, c.v, c.bias, None, length, listed.masked_fill(past, 1 << 20), group
        )
    if per_query:
        options["row_mask"] = torch.rand(2, per_query, s_q, n, device=DEVICE) < 0.5
        options["row_mask"][:, :, 1] = False
    if orders:
        options["q_order"] = torch.rand(2, orders, s_q, device=DEVICE).argsort(-1)
    if tail:
        options["tail"] = torch.randn(2, kv_heads, d, dv, device=DEVICE) * 0.1
    return (q, k, v), (count, index), options


def wide(x):
    """Return x with every floating tensor in float64."""
    if isinstance(x, Columns):
        bias = x.bias if x.bias is None else x.bias.double()
        return replace(x, k=x.k.double(), v=x.v.double(), bias=bias)
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def close(got, eager, exact, dtype):
    """Assert err(got) <= 2 err(eager in its dtype) + rounding band, and equal infinities."""
    assert torch.equal(got.isinf(), exact.isinf()) and not got.isnan().any()
    finite = ~exact.isinf()
    got, eager, exact = (x[finite].double() for x in (got, eager, exact))
    if exact.numel():
        band = 4 * torch.finfo(dtype).eps * exact.abs().max().clamp(min=1)
        bound = 2 * (eager - exact).abs().max() + band
        assert (got - exact).abs().max() <= bound


def ordered(tensors, lists, options, **more):
    """Return the oracle's out and lse; with an order, of moved queries, and moved back."""
    options, q = dict(options), tensors[0]
    order = options.pop("q_order", None)
    if order is not None:
        q = reference.permute_tokens(q, order)
    out, lse = reference.block_sparse_attention(q, *tensors[1:], *lists, **options, **more)
    if order is None:
        return out, lse
    lse = reference.permute_tokens(lse[..., None], order, inverse=True)[..., 0]
    return reference.permute_tokens(out, order, inverse=True), lse


def compare(row, impl):
    """Assert that out and lse of `impl` agree with the float64 oracle on the call `case(**row)`."""
    tensors, lists, options = case(**row)
    dtype = tensors[0].dtype
    got = block_sparse_attention(*tensors, *lists, **options, impl=impl)
    exact = ordered(tuple(map(wide, tensors)), lists, {k: wide(x) for k, x in options.items()})
    eager = ordered(tensors, lists, options, math_dtype=dtype)
    assert got[0].dtype == dtype and got[1].dtype == torch.float32
    close(got[0], eager[0], exact[0], dtype)
    close(got[1], eager[1], exact[1], torch.float32 if impl == "reference" else dtype)
