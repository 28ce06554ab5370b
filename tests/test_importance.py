"""PSA's sampled importance (2512.04025): the kernel's three forms, and the sample it is fed."""

import pytest
import torch

import dit_sparse
from dit_sparse import Context, Grid
from dit_sparse.constants import golden
from dit_sparse.core import QKV, Blocks, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.contract import Cut, per_head
from dit_sparse.kernels.importance import sampled_importance
from dit_sparse.kernels.strata import sample_strata
from dit_sparse.score.sampled import Sampled, sample
from dit_sparse.testing import Problem, relative_error
from tests.kernel_cases import DEVICE, offsets


def oracle(q, k, q_count, k_count, reduce="max", norm="sum"):
    """Return the importance by its formula, pair of blocks by pair of blocks."""
    batch, heads, rows, cols = *q.shape[:2], q_count.shape[-1], k_count.shape[-1]
    s, t, group = q.shape[2] // rows, k.shape[2] // cols, q.shape[1] // k.shape[1]
    out = torch.zeros(batch, heads, rows, cols, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            n = k_count.expand(batch, k.shape[1], cols)[b, h // group].tolist()
            real = torch.cat([torch.arange(j * t, j * t + c) for j, c in enumerate(n)])
            keys = k[b, h // group, real].double()
            for i, m in enumerate(q_count.expand(batch, heads, rows)[b, h].tolist()):
                logits = q[b, h, i * s : i * s + m].double() @ keys.T * q.shape[-1] ** -0.5
                z = logits.logsumexp(-1) if norm == "sum" else logits.amax(-1)
                parts = (logits - z[:, None]).exp().split(n, -1)
                for j, p in enumerate(parts):
                    if p.numel():
                        out[b, h, i, j] = p.max() if reduce == "max" else p.mean()
    return out


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("impl", ["reference", "torch", "triton"])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(("reduce", "norm"), [("max", "sum"), ("mean", "sum"), ("max", "max")])
def test_importance_equals_its_formula(reduce, norm, kv_heads, impl, monkeypatch):
    """Blocks of any count, also empty ones; sample sizes that are no powers of two."""
    shape, dtype = (2, 4, 5 * 6, 24), torch.float32 if impl == "triton" else torch.float64
    q = 2 * torch.randn(shape, dtype=dtype)
    k = 2 * torch.randn(2, kv_heads, 7 * 4, 24, dtype=dtype)
    q_count = torch.tensor([6, 6, 6, 6, 3], dtype=torch.int32)[None, None]
    k_count = torch.randint(0, 5, (1, kv_heads, 7), dtype=torch.int32)
    k_count[..., 0], k_count[..., 5] = 4, 0
    want = oracle(q, k, q_count, k_count, reduce, norm)
    # what lies behind the count must not matter
    q[:, :, 27:] = 50.0
    if impl == "triton":
        from dit_sparse.kernels import importance_triton

        # eight tiles for three programs: a scratch is used again
        monkeypatch.setattr(importance_triton, "_PROGRAMS", 3)
    else:
        monkeypatch.setattr("dit_sparse.kernels.importance._LOGITS", 30_000)
    out = sampled_importance(
        *(x.to(DEVICE) for x in (q, k, q_count, k_count)), reduce=reduce, norm=norm, impl=impl
    ).cpu()
    # float32 logits of size 20 carry eps * 20, and the exponential passes it on
    bound = 1e-12 if dtype == torch.float64 else 40 * torch.finfo(dtype).eps
    assert relative_error(out, want) < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("t", "reduce", "norm"), [(16, "max", "sum"), (4, "mean", "sum"),
                                                   (16, "max", "max")])  # fmt: skip
def test_whole_key_blocks_need_no_mask(t, reduce, norm, dtype):
    """Samples that are powers of two, a run of whole key blocks, then short ones and whole ones."""
    q = (2 * torch.randn(1, 2, 9 * 16, 40)).to(dtype)
    k = (2 * torch.randn(1, 1, 13 * t, 40)).to(dtype)
    q_count = torch.tensor([16] * 8 + [5], dtype=torch.int32)[None, None]
    k_count = torch.tensor([t] * 10 + [1, t, 2], dtype=torch.int32)[None, None]
    want = oracle(q, k, q_count, k_count, reduce, norm)
    out = sampled_importance(
        *(x.to(DEVICE) for x in (q, k, q_count, k_count)), reduce=reduce, norm=norm, impl="triton"
    ).cpu()
    # products of 2-byte numbers are exact in float32, which tensor cores cut instead of rounding
    wide = torch.finfo(torch.float32).eps * (40 if dtype == torch.float32 else 160)
    assert out.dtype == torch.float32 and relative_error(out, want) < wide


@pytest.mark.parametrize("tokens", [128, 100, 97, 33, 5, 1])
@pytest.mark.parametrize("size", [32, 8])
def test_a_sample_is_a_quarter_in_strata(tokens, size):
    blocks, seen = Blocks.uniform(tokens, size), set()
    s, x = max(1, blocks.size // 4), torch.arange(tokens)[None, None, :, None].double()
    for step in range(60):
        at, count = sample(x, blocks, 4, step)
        at = at.int().unflatten(2, (-1, s))[0, 0, ..., 0]
        for j, c in enumerate(count[0, 0].tolist()):
            n = min(blocks.size, tokens - j * blocks.size)
            own = (at[j, :c] - j * blocks.size).tolist()
            assert c == max(1, -(-n * s // blocks.size)) and own == sorted(set(own))
            assert all(i * n / c - 1 < p < (i + 1) * n / c and p < n for i, p in enumerate(own))
            seen |= set(at[j, :c].tolist())
    assert seen == set(range(tokens)), "over the steps every token has its turn"


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("cut", "tokens"),
    [(Cut(32), 100), (Cut(7), 7), (Cut(24, offsets([24, 0, 7, 13])), 44),
     (Cut(20, offsets([20, 1, 0, 11], heads=3)), 32)],
    ids=str,
)  # fmt: skip
def test_both_forms_take_the_same_tokens(cut, tokens, dtype):
    x = torch.randn(2, tokens, 3, 30).to(DEVICE, dtype)[..., 1:-5].transpose(1, 2)
    s, n = -(-cut.size // 4), cut.count(tokens)
    for shift in (0.0, 0.3, 0.99):
        (one, count), (two, same) = (
            sample_strata(x, cut, s, walk=golden(1), shift=shift, impl=i)
            for i in ("triton", "torch")
        )
        assert torch.equal(count, same) and count.dtype == torch.int32
        real = torch.arange(s, device=DEVICE) < per_head(count, 2, 3)[..., None]
        one, two = (t.unflatten(2, (n, s)) for t in (one, two))
        assert torch.equal(one[real], two[real]) and one.isfinite().all()


def test_score_is_the_sample_s_importance():
    """Through the stage, on a ragged grid with text: rows sum to 1, text takes no part."""
    grid = Grid(3, 5, 7, text=9)
    with torch.device(DEVICE):
        p = Problem.make(grid)
    method, ctx = dit_sparse.get("psa", block=(32, 16)), p.context()
    layout = method.arrange(p.x, ctx)
    score = method.score(p.x, layout, ctx)
    q, k = (t.gather(2, layout.q.order[..., None].expand_as(t)) for t in p.x[:2])
    (q, q_count), (k, k_count) = (
        sample(t, b, 4, ctx.step) for t, b in zip((q, k), layout, strict=True)
    )
    want = oracle(*(t.cpu() for t in (q, k, q_count, k_count)))
    assert relative_error(score.cpu(), want / want.sum(-1, keepdim=True)) < 1e-12
    other = p.x._replace(k=p.x.k.index_fill(2, torch.arange(105, 114, device=DEVICE), 9.0))
    assert torch.equal(method.score(other, layout, p.context()), score)
    # float32 logits of size 20, as above, and a sum over the row
    single = p.to(torch.float32)
    kernel = method.score(single.x, layout, single.context("triton"))
    assert relative_error(kernel, score) < 80 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("s", "fields", "says"),
    [
        (0, {}, r"s must be a count in \[1, size\], got 0"),
        (4, {"walk": 1.0}, "walk must lie"),
        (4, {"shift": -0.1}, "shift must lie"),
        (4, {"impl": "fast"}, "impl must be"),
    ],
)
def test_bad_strata_are_named(s, fields, says):
    with pytest.raises(ValueError, match=says):
        sample_strata(torch.ones(1, 1, 16, 4), 8, s, **{"walk": 0.5, "shift": 0.5, **fields})


def test_causal_is_refused():
    with pytest.raises(ArgumentError, match="causal=True"):
        Sampled()(QKV(*torch.randn(3, 1, 1, 64, 8)), Layout(*2 * [Blocks.uniform(64, 8)]),
                  Context(causal=True))  # fmt: skip
