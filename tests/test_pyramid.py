"""Pooled columns and their lists (PSA): both forms against the formulas, group by group."""

from math import inf, log

import pytest
import torch

from dit_sparse.compute.pyramid import Pyramid
from dit_sparse.core import QKV, Blocks, Context, Layout, Plan
from dit_sparse.kernels.contract import Cut, block_bounds, per_head
from dit_sparse.kernels.pyramid import level_lists, pool_groups
from tests.kernel_cases import BOTH, DEVICE, offsets

ALL = (2, 4, 8)
# block sizes: uniform with a short last block, no multiple of 8, one block, unequal, per head
CUTS = {
    "short last": (Cut(16), 3 * 16 + 5),
    "one token left": (Cut(8), 25),
    "no multiple of 8": (Cut(12), 40),
    "one block": (Cut(64), 37),
    "unequal": (Cut(24, offsets([24, 0, 7, 13])), 44),
    "per head": (Cut(20, offsets([20, 1, 0, 11], heads=2)), 32),
}


def groups(x, cut, factors):
    """Return (means, counts) group by group, [B, H, C, D] float64 and [B, H, C]."""
    batch, heads, tokens, _ = x.shape
    start, end = (per_head(t, batch, heads) for t in block_bounds(cut, tokens, x.device))
    x, means, counts = x.double(), [], []
    for f in factors:
        for j in range(start.shape[-1]):
            for g in range(-(-cut.size // 8) * 8 // f):
                mean, count = torch.zeros_like(x[:, :, 0]), torch.zeros(batch, heads)
                for b in range(batch):
                    for h in range(heads):
                        first = int(start[b, h, j]) + g * f
                        own = x[b, h, first : min(first + f, int(end[b, h, j]))]
                        count[b, h] = len(own)
                        mean[b, h] = own.mean(0) if len(own) else 0
                means.append(mean)
                counts.append(count)
    return torch.stack(means, 2), torch.stack(counts, 2)


@pytest.mark.usefixtures("poison")
@BOTH
@pytest.mark.parametrize(
    ("name", "dtype", "factors"),
    [
        *[(name, torch.float32, ALL) for name in CUTS],
        ("short last", torch.bfloat16, ALL),
        ("per head", torch.bfloat16, ALL),
        ("unequal", torch.float32, (2, 8)),
        ("no multiple of 8", torch.float16, (4,)),
    ],
)
def test_columns_are_the_means_of_their_groups(name, dtype, factors, impl):
    """Also of views with a margin that must not be read, and of values wider than keys."""
    cut, tokens = CUTS[name]
    k, v = (
        torch.full((2, tokens + 9, 2, d + 8), float("nan"), dtype=dtype, device=DEVICE)
        for d in (24, 40)
    )
    k, v = (x[:, 3 : 3 + tokens, :, :-8].transpose(1, 2) for x in (k, v))
    k.copy_(torch.randn(k.shape))
    v.copy_(torch.randn(v.shape))
    *columns, bias = pool_groups(k, v, cut, factors, impl=impl)
    for x, got in zip((k, v), columns, strict=True):
        want, count = groups(x, cut, factors)
        assert got.dtype == dtype and got.shape == want.shape and got.is_contiguous()
        # 7 sums and a division in float32, each of at most the largest mean, then one rounding
        wide = 8 * torch.finfo(torch.float32).eps * x.abs().max()
        assert ((got.double() - want).abs() <= wide + torch.finfo(dtype).eps * want.abs()).all()
        ln = torch.tensor([log(n) if n else -inf for n in range(9)], device=DEVICE)[count.long()]
        ours = bias.expand(ln.shape)
        assert torch.equal(ours.isinf(), ln.isinf()) and bias.dtype == torch.float32
        assert (ours - ln)[~ln.isinf()].abs().max() <= 2 * torch.finfo(torch.float32).eps * log(8)


@BOTH
@pytest.mark.parametrize(
    ("n", "factors"), [(1100, ALL), (300, ALL), (5, ALL), (40, (2, 4)), (40, (4, 8)), (40, (8,))]
)
def test_lists_hold_the_runs_of_each_level(n, factors, impl):
    """Levels of a wider tensor, and lists that are too short for some rows."""
    level = torch.randint(0, 5, (2, 2, 3, n + 3), dtype=torch.int8, device=DEVICE)[..., :n]
    most, want = max(factors), []
    for row in level.flatten(0, 2).tolist():
        runs, base = [], 0
        for f in factors:
            per = most // f
            runs += [
                base + j * per + i for j in range(n) for i in range(per) if 2 ** (row[j] - 1) == f
            ]
            base += n * per
        want.append(runs)
    for capacity in (None, n // 3):
        count, index = level_lists(level, factors, capacity, impl=impl)
        length = index.shape[-1]
        assert length == (n * most // min(factors) if capacity is None else capacity)
        cut = [runs[:length] for runs in want]
        assert count.flatten().tolist() == [len(runs) for runs in cut]
        assert index.flatten(0, 2).tolist() == [r + [0] * (length - len(r)) for r in cut]


@BOTH
@pytest.mark.parametrize("text", [0, 11])
def test_the_remainder_pools_the_video_alone(text, impl):
    """Its columns are those of the video's blocks, its lists those of their levels."""
    tokens, size = 3 * 16 + 5, 16
    ends = [0, 16, 32, 48, 53, *([64] if text else [])]
    cut = torch.tensor(ends, dtype=torch.int32, device=DEVICE)[None, None] if text else None
    blocks = Blocks(tokens + text, size, len(ends) - 1, None, cut, bool(text), text)
    x = QKV(*torch.randn(3, 2, 2, tokens + text, 8).to(DEVICE))
    level = torch.randint(0, 5, (2, 2, 2, blocks.count), dtype=torch.int8, device=DEVICE)
    plan = Plan(Layout(Blocks.uniform(tokens + text, 40), blocks), level)
    columns, _ = Pyramid()(x, plan, Context(impl=impl))
    k, v, bias = pool_groups(x.k[:, :, :tokens], x.v[:, :, :tokens], size, impl="torch")
    band = 8 * torch.finfo(torch.float32).eps
    assert torch.allclose(columns.k, k, rtol=0, atol=band * x.k.abs().max().item())
    assert torch.allclose(columns.v, v, rtol=0, atol=band * x.v.abs().max().item())
    assert torch.allclose(columns.bias, bias, rtol=band, atol=0)
    count, index = level_lists(level[..., :4], impl="torch")
    assert torch.equal(columns.count, count) and torch.equal(columns.index, index)
    assert columns.group * index.shape[-1] == k.shape[2] * 4 // 7


def test_means_pass_gradients_and_the_kernel_refuses_them():
    k, v = torch.randn(2, 1, 1, 20, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k, v: pool_groups(k, v, 12)[:2], (k, v))
    with pytest.raises(ValueError, match="no backward"):
        pool_groups(k.float(), v.float(), 12, impl="triton")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: pool_groups(x, x, 16, ()), "factors must be some of 2, 4, 8"),
        (lambda x: pool_groups(x, x, 16, (4, 2)), r"rising, got \(4, 2\)"),
        (lambda x: pool_groups(x, x[:, :, 1:], 16), "v must have k's"),
        (lambda x: pool_groups(x, x, 0), "blocks must be a Cut"),
        (lambda x: level_lists(x), "level must be int8"),
        (lambda x: level_lists(x.to(torch.int8), (4, 8), 99), r"capacity must lie in \[0, 16\]"),
    ],
)
def test_bad_calls_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call(torch.zeros(1, 1, 32, 8))
