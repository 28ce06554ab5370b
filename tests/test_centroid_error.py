"""The probe of a cluster's error (SVG-EAR), against its definition in float64."""

from itertools import pairwise

import pytest
import torch

from dit_sparse.kernels.contract import Cut
from dit_sparse.kernels.pool import pool_blocks
from dit_sparse.kernels.probe import probe_error
from dit_sparse.testing import relative_error
from tests.kernel_cases import BOTH, DEVICE, normal

pytestmark = pytest.mark.usefixtures("poison")


def clustered(sizes, heads=2, dim=16, dim_v=12, spread=1.0, seed=0):
    """k, v [1, heads, S, .] in blocks of the given sizes, the cut, and the block means."""
    offsets = torch.tensor([0, *sizes], device=DEVICE).cumsum(0).int().expand(1, heads, -1)
    total = sum(sizes)
    centre, noise = normal(2, 1, heads, total, dim + dim_v, seed=seed)
    first = torch.cat(
        [torch.full((n,), int(s)) for n, s in zip(sizes, offsets[0, 0], strict=False)]
    )
    both = centre[:, :, first.to(DEVICE)] + spread * noise
    k, v = both[..., :dim], both[..., dim:]
    cut = Cut(total, offsets)
    return k, v, cut, pool_blocks(k, cut), pool_blocks(v, cut)


def brute(q, k, v, k_mean, v_mean, cut, values=True):
    """Return E_cj by its definition, one block at a time."""
    group, scale, out = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5, []
    k, v, k_mean, v_mean = (t.repeat_interleave(group, 1) for t in (k, v, k_mean, v_mean))
    for j, (a, b) in enumerate(pairwise(cut.offsets[0, 0])):
        s = (scale * q @ k[:, :, a:b].mT).exp()
        mean = (scale * q @ k_mean[:, :, j : j + 1].mT).exp()
        gap = mean - s
        if values:
            gap = (
                mean[..., None] * v_mean[:, :, None, j : j + 1] - s[..., None] * v[:, :, None, a:b]
            )
            gap = gap.norm(dim=-1)
        out.append(gap.square().sum(-1))
    return torch.stack(out, -1)


@BOTH
@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probe_equals_brute_force(impl, values, dtype):
    """Grouped heads, an empty block, single tokens and blocks longer than a tile."""
    k, v, cut, *_ = clustered([7, 0, 1, 40, 2, 75, 1])
    k, v, q = k.to(dtype), v.to(dtype), normal(1, 4, 5, 16, seed=2).to(dtype)
    means = [pool_blocks(x.double(), cut) for x in (k, v)]
    want = brute(q.double(), k.double(), v.double(), *means, cut, values).log()
    found = probe_error(
        q, k, v, *(m.float() for m in means), cut, values=values, impl=impl
    ).double()
    single = cut.offsets[0, 0].diff() <= 1
    assert (found[..., single] == float("-inf")).all()
    # logits of size 10 in float32: 1e-5 relative on gaps a hundredth of the exponentials
    torch.testing.assert_close(found[..., ~single], want[..., ~single], rtol=0, atol=3e-3)


def test_probe_in_float64_is_exact():
    k, v, cut, *means = clustered([7, 3, 40])
    q = normal(1, 2, 5, 16, seed=2)
    found = probe_error(q, k, v, *means, cut)
    torch.testing.assert_close(found, brute(q, k, v, *means, cut).log(), rtol=0, atol=1e-10)


@BOTH
def test_probe_survives_large_logits_and_tight_clusters(impl):
    """exp of the logits overflows float32; in tight clusters the plain expansion keeps no digit."""
    k, v, cut, *_ = clustered([30, 50], spread=1e-3)
    q = 300 * normal(1, 2, 5, 16, seed=2)
    exact = probe_error(q, k, v, *(pool_blocks(x, cut) for x in (k, v)), cut)
    single = [t.float() for t in (k, v)]
    means = [pool_blocks(t, cut, dtype=torch.float32) for t in single]
    found = probe_error(q.float(), *single, *means, cut, impl=impl).double()
    assert exact.amax() > 300 and found.isfinite().all()
    # a relative error of E of exp(atol) - 1
    torch.testing.assert_close(found, exact, rtol=0, atol=0.02)


def test_grouped_heads_are_repeated_heads():
    k, v, cut, *means = clustered([7, 3, 40])
    q = normal(1, 4, 5, 16, seed=2)
    many = [t.repeat_interleave(2, 1) for t in (k, v, *means)]
    repeated = probe_error(q, *many, Cut(50, cut.offsets.repeat_interleave(2, 1)))
    assert relative_error(probe_error(q, k, v, *means, cut), repeated) < 1e-12


def test_the_rescaling_the_paper_prints_has_the_wrong_sign():
    """A block's error under its own shift becomes that of the row by exp(2 (m_block - m_row))."""
    s, mean = torch.tensor([0.3, -1.2, 0.5]).double(), torch.tensor(-0.1).double()
    block, row = s.max(), s.max() + 2.0
    under = [((mean - m).exp() - (s - m).exp()).square().sum() for m in (block, row)]
    assert torch.isclose(under[0] * (2 * (block - row)).exp(), under[1])
    assert not torch.isclose(under[0] * (2 * (row - block)).exp(), under[1], rtol=10)
