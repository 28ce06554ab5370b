"""PSA's sampled importance (2512.04025): the kernel's three forms, and the sample it is fed."""

import pytest
import torch

import dit_sparse
from dit_sparse import Context, Grid
from dit_sparse.core import QKV, Blocks, Layout
from dit_sparse.errors import ArgumentError
from dit_sparse.kernels.importance import sampled_importance
from dit_sparse.score.sampled import Sampled, sample, take
from dit_sparse.testing import Problem, relative_error
from tests.kernel_cases import DEVICE


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

        # a scratch for three of the eight heads: several launches, the last one short
        monkeypatch.setattr(importance_triton, "_SCRATCH", 3 * 4 * 30 * 7)
    else:
        monkeypatch.setattr("dit_sparse.kernels.importance._LOGITS", 30_000)
    out = sampled_importance(
        *(x.to(DEVICE) for x in (q, k, q_count, k_count)), reduce=reduce, norm=norm, impl=impl
    ).cpu()
    # float32 logits of size 20 carry eps * 20, and the exponential passes it on
    bound = 1e-12 if dtype == torch.float64 else 40 * torch.finfo(dtype).eps
    assert relative_error(out, want) < bound


@pytest.mark.parametrize("tokens", [128, 100, 97, 33, 5, 1])
@pytest.mark.parametrize("size", [32, 8])
def test_a_sample_is_a_quarter_in_strata(tokens, size):
    blocks, seen = Blocks.uniform(tokens, size), set()
    s = max(1, blocks.size // 4)
    for step in range(60):
        at, count = sample(blocks, 4, step, torch.device("cpu"))
        at = at.unflatten(-1, (-1, s))[0, 0]
        for j, c in enumerate(count[0, 0].tolist()):
            n = min(blocks.size, tokens - j * blocks.size)
            own = (at[j, :c] - j * blocks.size).tolist()
            assert c == max(1, -(-n * s // blocks.size)) and own == sorted(set(own))
            assert all(i * n / c - 1 < p < (i + 1) * n / c and p < n for i, p in enumerate(own))
            seen |= set(at[j, :c].tolist())
    assert seen == set(range(tokens)), "over the steps every token has its turn"


def test_score_is_the_sample_s_importance():
    """Through the stage, on a ragged grid with text: rows sum to 1, text takes no part."""
    grid = Grid(3, 5, 7, text=9)
    p = Problem.make(grid)
    method, ctx = dit_sparse.get("psa", block=(32, 16)), p.context()
    layout = method.arrange(p.x, ctx)
    score = method.score(p.x, layout, ctx)
    q, k = (t.gather(2, layout.q.order[..., None].expand_as(t)) for t in p.x[:2])
    (q_at, q_count), (k_at, k_count) = (sample(b, 4, ctx.step, q.device) for b in layout)
    want = oracle(take(q, q_at), take(k, k_at), q_count, k_count)
    assert relative_error(score, want / want.sum(-1, keepdim=True)) < 1e-12
    other = p.x._replace(k=p.x.k.index_fill(2, torch.arange(105, 114), 9.0))
    assert torch.equal(method.score(other, layout, p.context()), score)


def test_causal_is_refused():
    with pytest.raises(ArgumentError, match="causal=True"):
        Sampled()(QKV(*torch.randn(3, 1, 1, 64, 8)), Layout(*2 * [Blocks.uniform(64, 8)]),
                  Context(causal=True))  # fmt: skip
