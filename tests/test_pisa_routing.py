"""PISA (2602.01077): how it ranks blocks, and what its options accept."""

import pytest
import torch

import dit_sparse
from dit_sparse.arrange.raster import Raster
from dit_sparse.core import QKV, Context
from dit_sparse.errors import ArgumentError
from dit_sparse.score.pooled import PooledDot
from dit_sparse.testing import relative_error
from tests.pisa_oracle import BAND, BLOCK, covariances, draw, oracle, pisa


@pytest.mark.parametrize("sinks", [(0,), (-1, 2)])
def test_sinks_are_kept_by_every_row(sinks):
    q, k, v = draw()
    k[:, :, 0], k[:, :, -BLOCK:] = -9.0, -9.0
    out = pisa(q, k, v, keep=0.6, sinks=sinks)
    assert relative_error(out, oracle(q, k, v, 0.6, sinks=sinks)) < BAND
    kept = dit_sparse.plan(q, k, v, "pisa", keep=0.6, sinks=sinks).level == 1
    assert kept[..., list(sinks)].all() and (kept.sum(-1) == 3).all()


@pytest.mark.parametrize("tokens", [300, 64])
def test_deviation_is_the_norm_around_the_mean_covariance(tokens):
    """Formed without any H_j; a single block is its own mean, and scores as the eps alone."""
    x = QKV(*draw(tokens))
    layout = Raster(BLOCK)(x, Context())
    plain, biased = (
        PooledDot(error_bias=e, deviation=True)(x, layout, Context(impl="torch"))
        for e in (False, True)
    )
    h = covariances(x.k, x.v)
    norm = (h - h.mean(2, keepdim=True)).flatten(-2).norm(dim=-1)
    # rounding of |H|^2 under a root where everything cancels
    band = torch.finfo(torch.float64).eps ** 0.5 * 8 * h.norm().item()
    assert torch.allclose((biased - plain).exp(), norm[:, :, None] + 1e-5, rtol=1e-9, atol=band)


def test_both_norms_choose_almost_alike():
    """The spec's remark on the two readings of the norm."""
    q, k, v = draw(1024)
    code, text = (
        dit_sparse.plan(q, k, v, "pisa", keep=0.25, deviation=d).level for d in (False, True)
    )
    assert (code != text).double().mean() < 0.05


def test_flux_starts_at_its_fifth_layer():
    schedule = dit_sparse.get("pisa", keep=0.15, dense_layers=4).schedule
    assert [schedule.at(layer, 0, 28) for layer in (0, 3, 4)] == ["dense", "dense", "sparse"]


@pytest.mark.parametrize(
    "params,words",
    [
        ({"order": 2}, ["order=2", "0 or 1"]),
        ({"first_order": "local"}, ["first_order='local'", "'block'"]),
        ({"sinks": (0.5,)}, ["sinks=(0.5,)", "(0, -1)"]),
        ({"sinks": (7,)}, ["sinks=(7,)", "5 key blocks"]),
        ({"causal": True}, ["order=0", "first_order='block'"]),
    ],
)
def test_bad_values(params, words):
    with pytest.raises(ArgumentError) as caught:
        pisa(*draw(), **params)
    assert all(w in str(caught.value) for w in words) and "\n" not in str(caught.value)
