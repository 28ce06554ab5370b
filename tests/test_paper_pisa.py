"""PISA (2602.01077): the properties its formulas imply, against a token-level oracle in float64."""

from dataclasses import replace

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.compute.attend import Attend
from dit_sparse.testing import relative_error

BLOCK = 64
# the columns' bias log n is float32: its rounding moves their weight by eps * ln(n) / 2 at most
BAND = torch.finfo(torch.float32).eps * 4.2


def draw(tokens=320, dim=16, seed=0, spread=1.0):
    """q, k, v [1, 2, S, D] float64: keys clustered by block, values that follow the keys."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(1, 2, -(-tokens // BLOCK), 1, dim, generator=g, dtype=torch.float64)
    centre = centre.expand(-1, -1, -1, BLOCK, -1).flatten(2, 3)[:, :, :tokens]
    q, noise, v = torch.randn(3, 1, 2, tokens, dim, generator=g, dtype=torch.float64)
    mix = torch.randn(dim, dim, generator=g, dtype=torch.float64) / dim**0.5
    k = 2 * centre + spread * noise
    return 2 * q, k, k @ mix + 0.3 * v


def oracle(q, k, v, keep, order=1, per_block=False, error_bias=True):
    """Return PISA's output by its formulas, block by block, with a full softmax in float64."""
    s, dim = q.shape[2], q.shape[3]
    scale = dim**-0.5
    qs, ks, vs = (t.split(BLOCK, dim=2) for t in (q, k, v))
    kbar = torch.stack([b.mean(2) for b in ks], 2)
    vbar = torch.stack([b.mean(2) for b in vs], 2)
    h = torch.stack(
        [(kb - kb.mean(2, keepdim=True)).mT @ vb for kb, vb in zip(ks, vs, strict=True)], 2
    )
    n = torch.tensor([b.shape[2] for b in ks], dtype=torch.float64)
    out = []
    for rows in qs:
        score = scale * rows.mean(2, keepdim=True) @ kbar.mT
        if error_bias:
            score = score + (h.flatten(-2).norm(dim=-1) + 1e-5).log()[:, :, None]
        kept = torch.zeros_like(score, dtype=torch.bool)
        kept.scatter_(-1, score.topk(max(1, int(keep * len(ks))), -1).indices, True)
        tokens = kept.repeat_interleave(n.long(), -1)
        exact = (scale * rows @ k.mT).masked_fill(~tokens, float("-inf"))
        tail = (scale * rows @ kbar.mT + n.log()).masked_fill(kept, float("-inf"))
        p, e = torch.cat([exact, tail], -1).softmax(-1).split([s, len(ks)], -1)
        o = p @ v + e @ vbar
        if order == 1 and per_block:
            o = o + scale * torch.einsum("bhtj,bhtd,bhjde->bhte", e / n, rows, h)
        elif order == 1:
            o = o + e.sum(-1, keepdim=True) * scale * (rows @ h.sum(2)) / s
        out.append(o)
    return torch.cat(out, 2)


def pisa(q, k, v, impl="torch", **params):
    return dit_sparse.attention(q, k, v, "pisa", impl=impl, **{"keep": 0.25, **params})


@pytest.mark.parametrize("tokens", [320, 300, 257])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_equals_the_oracle(tokens, order, impl):
    """Also at a ragged end, where the real count of the last block matters."""
    q, k, v = draw(tokens)
    assert relative_error(pisa(q, k, v, impl, order=order), oracle(q, k, v, 0.25, order)) < BAND


@pytest.mark.parametrize("order", [0, 1])
def test_exact_when_keys_are_equal_in_each_block(order):
    q, k, v = draw(spread=0.0)
    truth = dit_sparse.attention(q, k, v, "dense")
    assert relative_error(pisa(q, k, v, order=order), truth) < BAND


def test_constant_values_come_back():
    q, k, v = draw()
    assert torch.allclose(pisa(q, k, torch.ones_like(v) * 3), torch.full_like(v, 3.0), rtol=BAND)


def test_equal_covariances_make_the_global_one_exact():
    q, k, v = draw(256)
    kc, vc = k[:, :, :BLOCK], v[:, :, :BLOCK]
    shift = torch.randn(1, 2, 4, 1, 16, dtype=torch.float64)
    k, v = (shift + kc[:, :, None]).flatten(2, 3), (shift + vc[:, :, None]).flatten(2, 3)
    per_block = oracle(q, k, v, 0.25, per_block=True, error_bias=False)
    assert relative_error(pisa(q, k, v, error_bias=False), per_block) < BAND


def test_each_refinement_lowers_the_error():
    q, k, v = draw(1024)
    truth = dit_sparse.attention(q, k, v, "dense")
    drop = replace(dit_sparse.get("pisa", keep=0.125), compute=Attend())
    outputs = (
        dit_sparse.attention(q, k, v, drop),
        pisa(q, k, v, keep=0.125, order=0),
        pisa(q, k, v, keep=0.125, order=1),
        oracle(q, k, v, 0.125, per_block=True),
    )
    errors = [relative_error(out, truth) for out in outputs]
    assert errors == sorted(errors, reverse=True), errors


def test_a_constant_added_to_all_keys_changes_nothing():
    q, k, v = draw()
    moved = k + torch.randn(1, 1, 1, 16, dtype=torch.float64)
    assert relative_error(pisa(q, moved, v), pisa(q, k, v)) < BAND


def test_order_inside_a_block_and_of_key_blocks_is_free():
    q, k, v = draw()
    inside = torch.cat([torch.randperm(BLOCK) + i * BLOCK for i in range(5)])
    blocks = torch.randperm(5).repeat_interleave(BLOCK) * BLOCK + torch.arange(BLOCK).repeat(5)
    for order in (inside, blocks):
        assert relative_error(pisa(q, k[:, :, order], v[:, :, order]), pisa(q, k, v)) < BAND
    assert relative_error(pisa(q[:, :, inside], k, v), pisa(q, k, v)[:, :, inside]) < BAND


def test_blocks_of_one_token_are_dense():
    q, k, v = draw(60)
    out = dit_sparse.attention(q, k, v, "pisa", grid=Grid(3, 4, 5), tile=(1, 1, 1), keep=0.1)
    assert relative_error(out, dit_sparse.attention(q, k, v, "dense")) < BAND


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_a_tail_block_may_hold_the_row_maximum(impl):
    """With large logits the tail raises the running maximum, and everything must be rescaled."""
    q, k, v = draw()
    q, k = 6 * q, k.clone()
    k[:, :, -BLOCK:] *= 4
    out = pisa(q, k, v, impl)
    assert relative_error(out, oracle(q, k, v, 0.25)) < BAND


def test_tiles_equal_a_permuted_raster():
    """On a grid the method is the raster one on permuted tokens."""
    q, k, v = draw(256)
    grid = Grid(4, 8, 8)
    h, w = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    order = torch.argsort((h // 4 * 2 + w // 4).flatten().repeat(4), stable=True)
    tiled = dit_sparse.attention(q, k, v, "pisa", grid=grid, keep=0.25)
    plain = pisa(q[:, :, order], k[:, :, order], v[:, :, order])
    assert relative_error(tiled[:, :, order], plain) < BAND
