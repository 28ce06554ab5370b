"""PSA's levels (2512.04025): cumulative bounds, budgets, the similarity cap, the presets."""

from math import floor

import pytest
import torch

import dit_sparse
from dit_sparse import Context, Grid
from dit_sparse.compute.pyramid import Pyramid
from dit_sparse.core import QKV, Blocks, Layout, Plan
from dit_sparse.errors import ArgumentError
from dit_sparse.score.sampled import level_caps
from dit_sparse.select.levels import Levels
from dit_sparse.testing import Problem


def naive(row, rule, bounds):
    """Return the levels of one row of scores by the rules as written, one block at a time."""
    n, order = len(row), sorted(range(len(row)), key=lambda j: -row[j])
    mass, sums = 0.0, []
    for j in order:
        mass += row[j]
        sums.append(mass)
    if rule == "quota":
        ends = [floor(n * b + 1e-9) for b in bounds]
    elif rule == "threshold":
        # all of the mass is all of the row, whatever its sum rounds to
        ends = [sum(c <= b + 1e-9 for c in sums) for b in bounds]
    else:
        ends, end = [], 0
        for t, b in enumerate(bounds):
            count = sum(c <= b + 1e-6 for c in sums)
            end = max(end, count + 1 if count else end)
            end = max(end, floor(0.06 * n) + 1) if t == 0 else end
            ends.append(end)
    out = [0] * n
    for r, j in enumerate(order):
        out[j] = next((t + 1 for t, end in enumerate(ends) if r < end), 0)
    out[order[0]] = 1
    return out


@pytest.mark.parametrize("rule", ["threshold", "released", "quota"])
@pytest.mark.parametrize("bounds", [(0.4, 0.5, 0.6, 0.8), (0.1, 0.15, 0.15, 0.35), (0.0, 1, 1, 1)])
@pytest.mark.parametrize("n", [1, 3, 40, 101])
def test_levels_follow_the_rule(rule, bounds, n):
    """And no row keeps more than the capacity promises, nor lists more columns."""
    score = (torch.randn(1, 2, 6, n, dtype=torch.float64) * torch.rand(6, 1) * 3).softmax(-1)
    select, ctx = Levels(bounds=bounds, rule=rule), Context()
    level = select(score, None, ctx)
    want = [[naive(row.tolist(), rule, bounds) for row in head] for head in score[0]]
    assert level.tolist() == [want]
    assert ((level == 1).sum(-1) <= select.capacity(n)).all() and (level == 1).any(-1).all()
    x = QKV(*torch.randn(3, 1, 2, n * 16, 8))
    plan = Plan(Layout(Blocks.uniform(n * 16, -(-n * 16 // 6)), Blocks.uniform(n * 16, 16)), level)
    (short, _), (full, _) = (Pyramid()(x, plan, c) for c in (ctx, Context()))
    assert torch.equal(short.count, full.count) and short.index.shape[-1] <= full.index.shape[-1]


@pytest.mark.parametrize("keep", [0.03, 0.125, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("levels", [(1, 2, 4, 8), (1, 8), (1,)])
def test_keep_is_the_work_done(keep, levels):
    p = Problem.make(Grid(4, 16, 16), batch=1)
    method = dit_sparse.get("psa", keep=keep, block=(64, 8), levels=levels)
    density = method.plan(p.x, p.context()).density().item()
    # of 128 blocks; a step of the common factor moves less than one of them
    assert keep - 1 / 128 <= density <= keep + 1e-6
    assert keep < 1 or density == 1


@pytest.mark.parametrize("tokens", [64, 53])
def test_caps_are_those_of_the_cosines(tokens):
    k = torch.randn(2, 8, tokens, 6, dtype=torch.float64)
    k = k + 0.2 * k.cumsum(2)
    limits = (0.6, 0.6, 0.58)
    caps = level_caps(k, Blocks.uniform(tokens, 16), limits, 16)
    unit = k / k.norm(dim=-1, keepdim=True)
    want = []
    for block in unit.split(16, 2):
        best = torch.ones(2, 8, dtype=torch.int8)
        for level, (factor, limit) in enumerate(zip((2, 4, 8), limits, strict=True), 2):
            groups = block.split(factor, 2)
            mean = sum((g[:, :, 0] * g[:, :, -1]).sum(-1) for g in groups) / len(groups)
            best = best.where(mean <= limit, level)
        want.append(best)
    assert torch.equal(caps, torch.stack(want, -1).repeat_interleave(2, 1))
    assert caps.unique().tolist() == [1, 2, 3, 4], "a block may pass 8 while failing 4"
    # the cap makes a plan finer and never brings a skipped block back
    score, plain, capped = torch.rand(2, 16, 3, 4).softmax(-1), Levels(), Levels(capped=True)
    ctx = Context(cache={"level_caps": caps})
    level = plain(score, None, Context())
    assert torch.equal(capped(score, None, ctx), torch.minimum(level, caps[:, :, None]))


@pytest.mark.parametrize("rule", ["threshold", "released", "quota"])
@pytest.mark.parametrize("cap", [1, 2, 3])
def test_capped_levels_fit_their_lists(rule, cap):
    """Blocks that a cap makes finer need more columns than the bounds alone tell."""
    n, caps = 24, torch.full((1, 2, 24), cap, dtype=torch.int8)
    ctx = Context(cache={"level_caps": caps})
    select = Levels(bounds=(0.1, 0.15, 0.15, 0.6), rule=rule, capped=True)
    level = select(torch.ones(1, 2, 4, n, dtype=torch.float64) / n, None, ctx)
    x = QKV(*torch.randn(3, 1, 2, n * 16, 8))
    plan = Plan(Layout(Blocks.uniform(n * 16, n * 4), Blocks.uniform(n * 16, 16)), level)
    (short, _), (full, _) = (Pyramid()(x, plan, c) for c in (ctx, Context()))
    assert torch.equal(short.count, full.count)
    assert ((level == 1).sum(-1) <= select.capacity(n)).all()


# the paper's presets: query and key block, bounds, what else; all 50 steps but the LoRA
BALANCED, TOPK = {"rule": "threshold"}, {"rule": "quota"}
PRESETS = {
    "plug-in": ((128, 64), (0.1, 0.15, 0.15, 0.35), TOPK),
    "wan2.1-14b": ((128, 128), (0.4, 0.5, 0.6, 0.8), BALANCED),
    "wan2.1-1.3b": (
        (128, 128), (0.5, 0.6, 0.7, 0.8), {**BALANCED, "similarity": (0.7, 0.65, 0.6)},
    ),
    "wan2.1-1.3b topk": ((128, 32), (0.05, 0.1, 0.15, 0.25), TOPK),
    "wan2.2-a14b": ((128, 32), (0.5, 0.6, 0.6, 0.8), BALANCED),
    "wan2.2-5b": ((128, 32), (0.6, 0.7, 0.7, 0.8), BALANCED),
    "cogvideox-5b": ((128, 128), (0.1, 0.15, 0.15, 0.35), {**TOPK, "order": "raster"}),
    "cogvideox-5b lora": (
        (128, 128), (0.05, 0.15, 0.25, 0.5), {**TOPK, "order": "raster", "dense_steps": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_the_paper_s_presets_run(name):
    """Each is what its bounds say: quotas of blocks, or no more blocks than mass."""
    block, bounds, rest = PRESETS[name]
    p = Problem.make(Grid(5, 16, 16), batch=1)
    method = dit_sparse.get("psa", block=block, bounds=bounds, **rest)
    assert p.run(method, "torch").isfinite().all()
    assert method.schedule.first_sparse_step(50) == (0 if "lora" in name else 15)
    plan = method.plan(p.x, p.context())
    n, kept = plan.level.shape[-1], (plan.level > 0).sum(-1)
    assert n == 1280 // block[1] and (kept <= max(1, floor(bounds[-1] * n))).all()
    if rest["rule"] == "quota":
        ends = [max(1, floor(b * n + 1e-6)) for b in bounds]
        cumulative = [((plan.level > 0) & (plan.level <= t)).sum(-1) for t in range(1, 5)]
        assert all((c == e).all() for c, e in zip(cumulative, ends, strict=True))
    # rho of the plug-in's quotas, as the paper states it
    if name == "plug-in":
        assert plan.density().item() == pytest.approx(0.15, abs=1 / n)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"bounds": (0.5, 0.4, 0.6, 0.8)}, "bounds=.*rising"),
        ({"bounds": (0.5, 0.6, 0.7, 1.2)}, r"bounds=.*\[0, 1\]"),
        ({"bounds": (0.5, 0.6)}, "bounds=.*must be 4"),
        ({"bounds": (0.0, 0.1, 0.2, 0.3), "keep": 0.2}, "bounds=.*above 0"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"block": (128, 60)}, "block=.*multiples of 8"),
        ({"block": (128,)}, "block="),
        ({"levels": (2, 4)}, "levels="),
        ({"rule": "topk"}, "rule='topk'"),
        ({"importance": "sum"}, "importance='sum'"),
        ({"norm": "l2"}, "norm='l2'"),
        ({"order": "zigzag"}, "order='zigzag'"),
        ({"similarity": (0.7, 0.6)}, "similarity="),
        ({"similarity": (0.7, 0.6, 2)}, "similarity="),
    ],
)
def test_bad_parameters_are_named(params, says):
    with pytest.raises(ArgumentError, match=says):
        dit_sparse.get("psa", **params)
