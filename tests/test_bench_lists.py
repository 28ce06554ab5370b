"""The benchmark's random lists and forms of a call: what they hold, and how it is counted."""

import math
from dataclasses import replace

import pytest
import torch

from dit_sparse.bench import kernel
from dit_sparse.bench.lists import FORMS, Case, call_options, density, random_lists
from dit_sparse.kernels.contract import block_bounds
from dit_sparse.kernels.reference import dense_mask, token_blocks
from tests.test_bench import CPU, TIMER, TINY


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("spread", [1, 3, 1000])
@pytest.mark.parametrize("blocks", [(64, 32), (128, 48)])
def test_lists_and_their_density(share, spread, blocks):
    """The density is that of the token mask; lists are ascending, distinct, as long as asked."""
    case = Case(TINY, share, *blocks, spread)
    lists = random_lists(case, CPU)
    n = math.ceil(TINY.tokens / blocks[1])
    mask = dense_mask(lists.count, lists.index, n)
    assert torch.equal(mask.sum(-1), lists.count) and (lists.count >= 1).all()
    tokens = mask.repeat_interleave(blocks[0], 2).repeat_interleave(blocks[1], 3)
    tokens = tokens[:, :, : TINY.tokens, : TINY.tokens].double()
    assert density(lists, TINY.tokens) == pytest.approx(tokens.mean().item(), rel=1e-12)
    used = torch.arange(lists.index.shape[-1]) < lists.count[..., None]
    steps = lists.index.diff(dim=-1)[used[..., 1:]]
    assert (steps > 0).all()
    mean = share * n
    bounds = 2 * mean / (1 + spread), 2 * mean * spread / (1 + spread)
    low, high = (min(n, max(1, round(b))) for b in bounds)
    assert (lists.count >= low).all() and (lists.count <= high).all()


def test_whole_lists_hold_the_same_blocks():
    lists = random_lists(Case(TINY, 0.4, 64, 32, 10), CPU)
    whole = lists.whole(TINY.tokens)
    assert whole.shape[-1] == 10
    assert torch.equal(*(dense_mask(lists.count, i, 10) for i in (whole, lists.index)))


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    """Each is a call whose output is checked, and counts what it computes, query by query."""
    case = Case(replace(TINY, tokens=290), 0.3, 64, 32, form=form)
    (row,) = (r for r in kernel.run([case], TIMER, torch.float32, "torch") if r.ours)
    assert row.ms and 0 < row.error < 1, row.why
    x = kernel.draw(case.shape, CPU, torch.float32)
    drawn = random_lists(case, CPU)
    told = call_options(case, x, drawn)
    starts, ends = block_bounds(told["kv_blocks"], 290, CPU)
    sizes = (ends - starts).expand(1, 2, -1)
    block = token_blocks(told["q_blocks"], 290, 1, 2, CPU)
    mask = dense_mask(drawn.count, drawn.index, sizes.shape[-1])
    seen = (mask * sizes[:, :, None]).sum(-1).gather(2, block)
    assert sizes.sum(-1).eq(290).all() and sizes.max() <= told["kv_blocks"].size
    if form == "boxes":
        assert sizes.min() >= 24
    if form in ("columns", "tail"):
        seen = seen + (~mask).sum(-1).gather(2, block)
    if form == "listed":
        seen = seen + told["columns"].count.gather(2, block) * 16
    assert row.density == pytest.approx(seen.double().mean().item() / 290)
