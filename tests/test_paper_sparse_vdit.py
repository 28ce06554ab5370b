"""Sparse-vDiT (2506.03065): its modes against token-level masks in float64, and its tables."""

from math import ceil

import pytest
import torch

import dit_sparse
from dit_sparse import Grid
from dit_sparse.core import QKV, Context
from dit_sparse.errors import ArgumentError
from dit_sparse.profile import Profile
from dit_sparse.score.geometric import priority
from dit_sparse.select.per_head import Table
from dit_sparse.testing import Problem, relative_error

GRIDS = [Grid(4, 8, 8), Grid(5, 7, 9), Grid(4, 5, 9, 11), Grid(3, 6, 10, 7, True)]
BLOCK = 16


def vdit(x, grid, table, impl="torch", **params):
    params = {"block": BLOCK, "keep": 0.4, **params}
    return dit_sparse.attention(*x, "sparse_vdit", grid=grid, impl=impl, table=table, **params)


def plan(x, grid, table, **params):
    return dit_sparse.plan(*x, "sparse_vdit", grid=grid, table=table, **{"block": BLOCK, **params})


def mask(grid, mode, keep, block=BLOCK):
    """Return a mode's mask [S, S] in the given token order, from its definition."""
    video, patches = grid.video, grid.height * grid.width
    token = torch.arange(video)
    place = token % patches * grid.frames + token // patches if mode == "M" else token
    n = -(-video // block)
    share = max(0, keep * grid.tokens**2 - grid.tokens**2 + video**2) / video**2
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    blocks = torch.ones(n, n, dtype=torch.bool)
    if mode in "DM":
        w = min(range(n), key=lambda w: abs(((i - j).abs() <= w).double().mean().item() - share))
        blocks = (i - j).abs() <= w
    elif mode == "V":
        first = -(-patches // block)
        blocks = torch.isin(j, torch.tensor(priority(n, first)[: max(1, ceil(share * n - 1e-6))]))
    seen = blocks[place // block][:, place // block]
    ends = (grid.text, 0) if grid.text_first else (0, grid.text)
    seen = torch.nn.functional.pad(seen, ends * 2, value=True)
    return torch.zeros_like(seen) if mode == "S" else seen


def masked(x, seen):
    """Return softmax attention over the seen pairs, 0 where none is."""
    logits = x.q @ x.k.mT * x.q.shape[-1] ** -0.5
    return logits.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num() @ x.v


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_mode_equals_its_mask_in_one_launch(grid, impl):
    x = Problem.make(grid, heads=5).x
    out = vdit(x, grid, "FSDMV", impl)
    truth = masked(x, torch.stack([mask(grid, mode, 0.4) for mode in "FSDMV"]))
    assert relative_error(out, truth) < 1e-12
    assert not out[:, 1].any(), "a skipped head gives 0, text rows too"


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_density_is_what_the_modes_compute(grid):
    x = Problem.make(grid, heads=1).x
    n = grid.video // BLOCK
    for mode in "FSDMV":
        density = plan(x, grid, mode, keep=0.4).density().item()
        assert density == pytest.approx(mask(grid, mode, 0.4).double().mean().item(), abs=1e-6)
        # one width more adds two diagonals, one stripe more one column
        assert mode in "FS" or abs(density - 0.4) <= 2 / n
    every = plan(Problem.make(grid, heads=5).x, grid, "FSDMV", keep=0.4).density()
    each = [mask(grid, mode, 0.4).double().mean() for mode in "FSDMV"]
    assert every.item() == pytest.approx(torch.stack(each).mean().item(), abs=1e-6)


def test_default_shares_are_kept():
    """1 - S_i on a grid whose blocks are fine enough to show them."""
    grid = Grid(8, 16, 16)
    x = QKV(*torch.randn(3, 1, 1, grid.tokens, 8))
    for mode, share in {"D": 0.15, "M": 0.15, "V": 0.10}.items():
        assert plan(x, grid, mode).density().item() == pytest.approx(share, abs=1 / 128)


@pytest.mark.parametrize("grid", [Grid(4, 8, 8), Grid(5, 7, 9), Grid(4, 5, 9, 11)], ids=str)
def test_multi_diagonal_is_the_diagonal_of_the_transposed_video(grid):
    """Mode M = transpose, D with the same width, transpose back; to the last bit."""
    x = Problem.make(grid).x
    video = torch.arange(grid.video).view(grid.frames, -1).T.flatten()
    there = torch.cat([video, torch.arange(grid.video, grid.tokens)])
    turned = vdit(QKV(*(t[:, :, there] for t in x)), grid, "D")
    assert torch.equal(vdit(x, grid, "M"), turned[:, :, there.argsort()])


def test_multi_diagonal_holds_diagonals_at_multiples_of_a_frame():
    """With one patch per block, of all frames, it keeps j - i = a P + c with |c| <= w."""
    grid = Grid(8, 6, 6)
    x, patches = Problem.make(grid).x, 36
    place = torch.arange(grid.video) % patches
    near = (place[:, None] - place).abs()
    w = min(range(patches), key=lambda w: abs((near <= w).double().mean().item() - 0.2))
    out = vdit(x, grid, "M", block=grid.frames, keep=0.2)
    assert relative_error(out, masked(x, near <= w)) < 1e-12


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("params", [{"table": "F"}, {"table": "DMV", "keep": 1.0}])
def test_full_widths_are_dense(grid, params):
    x = Problem.make(grid, heads=3).x
    truth = dit_sparse.attention(*x, "dense")
    assert relative_error(vdit(x, grid, **params), truth) < 1e-12


def test_heads_together_equal_heads_alone():
    grid = Grid(4, 5, 9, 11)
    x = Problem.make(grid, heads=7).x
    out = vdit(x, grid, "MDSVFMV")
    for h, mode in enumerate("MDSVFMV"):
        alone = vdit(QKV(*(t[:, h : h + 1] for t in x)), grid, mode)
        assert torch.allclose(out[:, h : h + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS[2:], ids=str)
def test_text_rows_are_dense(grid):
    x = Problem.make(grid, heads=4).x
    out, truth = vdit(x, grid, "FDMV"), dit_sparse.attention(*x, "dense")
    text = slice(0, grid.text) if grid.text_first else slice(grid.video, None)
    assert relative_error(out[:, :, text], truth[:, :, text]) < 1e-12
    assert all(relative_error(out[:, h], truth[:, h]) > 1e-3 for h in (1, 2, 3))


def test_stripes_spread_over_both_parts():
    n, first = 90, 10
    order = priority(n, first)
    assert sorted(order) == list(range(n))
    for count in (4, 9, 20, 45):
        head, rest = (sorted(j for j in order[:count] if (j < first) == part) for part in (1, 0))
        assert len(head) == min(first, (count + 1) // 2) and len(head) + len(rest) == count
        # no gap is wider than three mean gaps, ends included
        gaps = [b - a for a, b in zip([first, *rest], [*rest, n], strict=True)]
        assert max(gaps) <= 3 * (n - first) / len(rest)


def test_the_table_is_read_by_layer_and_step():
    table = Table((("DD", "MM"), ("VV", "FS"), ("SD", "DS")))
    read = [
        [table(Context(layer=layer, step=step, steps=3), 2) for layer in (0, 1)]
        for step in range(3)
    ]
    assert read == [["DD", "MM"], ["VV", "FS"], ["SD", "DS"]]
    layers = Table(("DD", "MV"))
    assert [layers(Context(layer=n, step=7, steps=9), 2) for n in (0, 1)] == ["DD", "MV"]
    assert Table("DMV")(Context(), 8) == "DMVDMVDM" and Table("DMV")(Context(), 2) == "DM"


def test_the_layer_and_step_of_a_call_reach_its_plan():
    grid = Grid(4, 8, 8)
    x = Problem.make(grid).x
    method = dit_sparse.get("sparse_vdit", table=[["DD", "MM"], ["FF", "DS"]], keep=0.3)
    one = dit_sparse.plan(*x, "sparse_vdit", grid=grid, table="D", keep=0.3).density().item()
    found = {
        (step, layer): method.plan(x, Context(grid=grid, layer=layer, step=step, steps=2))
        for step in (0, 1)
        for layer in (0, 1)
    }
    shares = {at: p.density().item() for at, p in found.items()}
    assert shares == pytest.approx({(0, 0): one, (0, 1): one, (1, 0): 1, (1, 1): one / 2})
    assert found[0, 0].layout.q.order is None and found[0, 1].layout.q.order is not None


def test_nested_tables_live_in_profiles():
    rows = [["DMV", "FSD"], ["VVV", "MMM"]]
    profile = Profile("any", "sparse_vdit", {"table": rows})
    again = Profile.from_toml(profile.to_toml())
    assert again.build() == dit_sparse.get("sparse_vdit", table=tuple(map(tuple, rows)))
    assert hash(again.build()) == hash(profile.build())


@pytest.mark.parametrize(
    "table,said",
    [
        ("DMX", "'DMX'.*F, S, D, M, V"),
        ("dm", "'dm'"),
        ("", "''"),
        ((), r"table=\(\)"),
        (3, "table=3"),
        (("DM", "DQ"), "'DQ'"),
        ((("DM", "DM"), ("DM",)), "step 1 has 1 layers, step 0 has 2"),
        ((("DM",), "DM"), "table"),
        (("DM", ("DM",)), "table"),
        (((("DM",),),), "table"),
    ],
)
def test_a_wrong_table_is_refused_at_once(table, said):
    with pytest.raises(ArgumentError, match=said):
        dit_sparse.get("sparse_vdit", table=table)


@pytest.mark.parametrize(
    "table,at,said",
    [
        (("DMV",), {"layer": 0}, "table: layer 0 has 3 letters, the model 2 heads"),
        (("DM",), {"layer": 1}, "table has 1 layers; layer 1"),
        ((("DM",),) * 3, {"steps": 4}, "table has rows for 3 steps, this is step 0 of 4"),
    ],
)
def test_a_table_that_does_not_fit_the_model_is_refused(table, at, said):
    grid = Grid(2, 4, 4)
    with pytest.raises(ArgumentError, match=said):
        dit_sparse.get("sparse_vdit", table=table)(Problem.make(grid).x, Context(grid=grid, **at))


def test_wrong_shares_and_calls_are_refused():
    for name in ("diagonal", "multi_diagonal", "stripe", "keep"):
        with pytest.raises(ArgumentError, match=f"{name}=1.5"):
            dit_sparse.get("sparse_vdit", **{name: 1.5})
    x = QKV(*torch.randn(3, 1, 2, 64, 8))
    with pytest.raises(ArgumentError, match="grid=None"):
        dit_sparse.attention(*x, "sparse_vdit")
