"""VMoBA (2506.23858): the properties its rules imply, against a token-level oracle in float64."""

from math import ceil

import pytest
import torch

import dit_sparse
from dit_sparse import Context, Grid
from dit_sparse.arrange.partitions import Partitions
from dit_sparse.core import QKV
from dit_sparse.select.gates import GateMass
from dit_sparse.testing import Problem, relative_error

# the arithmetic of both sides is float64; sums of at most 300 terms
BAND = 1e-12
SMALL = {"slabs": 3, "columns": (2, 3), "boxes": (2, 2, 2), "dense_steps": 0}
PARTS = {0: (3, 1, 1), 1: (1, 2, 3), 2: (2, 2, 2)}
EVEN, RAGGED, TEXT = Grid(3, 4, 6), Grid(4, 5, 7), Grid(4, 4, 5, text=3, text_first=True)
SCOPES = ("head", "query", "block", "overall")
POOLS = {"head": (2, 3), "query": (3,), "block": (1, 2), "overall": (1, 2, 3)}


def run(problem, layer=0, impl="reference", x=None, **params):
    method = dit_sparse.get("vmoba", **{**SMALL, **params})
    x, ctx = x or problem.x, problem.context(impl, layer=layer)
    return method(x, ctx), method.plan(x, ctx)


def block_ids(grid, parts):
    """Return the block of each video token, from its coordinates alone."""
    number = torch.zeros(1, dtype=torch.long)
    for side, n in zip((grid.frames, grid.height, grid.width), parts, strict=True):
        n = min(n, side)
        part = [min(i for i in range(n) if p < ceil((i + 1) * side / n)) for p in range(side)]
        number = number[:, None] * n + torch.tensor(part)
        number = number.flatten()
    return number


def choose(gate, own, rule, amount, scope):
    """Return the kept pairs [B, H, S, N] by ranking each pool in full, one pair at a time."""
    keep = own.expand_as(gate).clone()
    names = torch.arange(gate[0].numel()).view(gate.shape[1:])
    axes = [a - 1 for a in POOLS[scope]]
    rest = [a for a in range(3) if a not in axes]
    count = torch.Size(gate.shape[1:][a] for a in rest).numel()
    pools = names.permute(*rest, *axes).reshape(count, -1)
    for b in range(gate.shape[0]):
        g_all, own_all, kept = gate[b].flatten(), own.repeat(gate.shape[1], 1), keep[b].view(-1)
        for pool in pools:
            g, self_ = g_all[pool], own_all.flatten()[pool]
            span = g.max() - g.min()
            w = (g - g.min()) / span if span > 0 else torch.ones_like(g)
            worth = (w if rule == "tau" else torch.ones_like(w)).tolist()
            mine = self_.tolist()
            have = sum(a for a, m in zip(worth, mine, strict=True) if m)
            target = amount * (sum(worth) if rule == "tau" else 1)
            chosen = []
            for i in g.argsort(descending=True).tolist():
                if not mine[i] and have < target:
                    chosen.append(i)
                    have += worth[i]
            kept[pool[chosen]] = True
    return keep


def oracle(problem, layer, rule="tau", amount=0.25, scope="head"):
    """Return the output and the token mask [B, H, S, S] in the given order."""
    grid, (q, k, v) = problem.grid, problem.x
    ids = block_ids(grid, PARTS[layer])
    first = grid.text if grid.text_first else 0
    video = slice(first, first + grid.video)
    kbar = torch.stack([k[:, :, video][:, :, ids == j].mean(2) for j in range(ids.max() + 1)], 2)
    own = torch.nn.functional.one_hot(ids).bool()
    keep = choose(q[:, :, video] @ kbar.mT, own, rule, amount, scope)
    mask = torch.ones(*q.shape[:3], q.shape[2], dtype=torch.bool)
    mask[:, :, video, video] = keep[..., ids]
    return masked(q, k, v, mask)[0], mask


def masked(q, k, v, mask):
    logits = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    return logits.softmax(-1) @ v, logits.logsumexp(-1, keepdim=True)


@pytest.mark.parametrize("grid", [EVEN, RAGGED, TEXT])
@pytest.mark.parametrize("scope", SCOPES)
def test_threshold_equals_the_oracle(grid, scope):
    """Also on ragged grids, where block means are over real tokens."""
    problem = Problem.make(grid, dim=8)
    layer = SCOPES.index(scope) % 3
    out, _ = run(problem, layer, scope=scope)
    assert relative_error(out, oracle(problem, layer, scope=scope)[0]) < BAND


@pytest.mark.parametrize("scope", ["head", "query", "overall"])
@pytest.mark.parametrize("layer", [1, 2])
def test_topk_equals_the_oracle(scope, layer):
    problem = Problem.make(RAGGED, dim=8)
    k = (1, 2, 3)
    each = {"query": 1, "head": RAGGED.video, "overall": 2 * RAGGED.video}[scope]
    truth, mask = oracle(problem, layer, "k", k[layer] * each, scope)
    out, plan = run(problem, layer, "torch", select="topk", k=k, scope=scope)
    assert relative_error(out, truth) < BAND
    assert abs(plan.density().item() - mask.double().mean().item()) < 1e-6


def test_gradients_are_those_of_masked_attention():
    """And merging own-block and routed attention by their log-sum-exps gives the same output."""
    problem = Problem.make(RAGGED, batch=1, dim=8)
    _, mask = oracle(problem, 1)
    leaves = [t.clone().requires_grad_() for t in problem.x]
    out, _ = run(problem, 1, x=QKV(*leaves))
    again = [t.clone().requires_grad_() for t in problem.x]
    weight = torch.randn_like(out)
    ours = torch.autograd.grad((out * weight).sum(), leaves)
    truth = torch.autograd.grad((masked(*again, mask)[0] * weight).sum(), again)
    assert all(relative_error(a, b) < BAND for a, b in zip(ours, truth, strict=True))
    ids = block_ids(RAGGED, PARTS[1])
    own = ids[:, None] == ids
    (near, a), (far, b) = masked(*problem.x, own), masked(*problem.x, mask & ~own)
    share = (a - torch.logaddexp(a, b)).exp()
    merged = share * near + (1 - share) * far.nan_to_num()
    assert relative_error(merged, out) < BAND


@pytest.mark.parametrize("params", [{"tau": 1.0}, {"tau": 7}, {"select": "topk", "k": (99,) * 3},
                                    {"keep": 1.0}, {"slabs": 1}])  # fmt: skip
def test_dense_limits(params):
    problem = Problem.make(RAGGED)
    out, plan = run(problem, **params)
    assert relative_error(out, dit_sparse.attention(*problem.x, "dense")) < BAND
    assert plan.density().item() == pytest.approx(1)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("params", [{"tau": 0}, {"select": "topk", "k": (1, 1, 1)}, {"keep": 1e-6}])
@pytest.mark.parametrize("scope", SCOPES)
def test_the_least_is_block_diagonal(params, scope, layer):
    """Nothing routed leaves each token its own block; no fallback to dense."""
    problem = Problem.make(RAGGED, batch=1, heads=1)
    out, plan = run(problem, layer, scope=scope, **params)
    ids = block_ids(RAGGED, PARTS[layer])
    if scope != "block" or "k" not in params:
        assert relative_error(out, masked(*problem.x, ids[:, None] == ids)[0]) < BAND
    order = plan.layout.q.order
    ids = ids if order is None else ids[order[0, 0]]
    assert plan.level[0, 0].gather(1, ids[:, None]).all()


def test_extra_keeps_one_pair_more():
    problem = Problem.make(RAGGED)
    least, more = (run(problem, 1, tau=0, extra=e)[1].level.bool() for e in (False, True))
    assert (more & ~least).flatten(2).sum(-1).eq(1).all() and (more | ~least).all()


@pytest.mark.parametrize("scope", SCOPES)
def test_selection(scope):
    """Nested in tau, blind to a positive affine map of the gates, and exact about the mass."""
    layout = Partitions("2", columns=(3, 4))(QKV(*[torch.zeros(1, 1, 140, 4)] * 3), Context(RAGGED))
    gate = torch.randn(2, 3, 140, 12, dtype=torch.float64).square()
    axes, last = POOLS[scope], None
    low, high = gate.amin(axes, keepdim=True), gate.amax(axes, keepdim=True)
    w = (gate - low) / (high - low)
    own = GateMass(0.0)(gate, layout, Context()).bool()
    assert (own.sum(-1) == 1).all()
    for tau in (0.0, 0.1, 0.25, 0.4, 0.7, 0.9, 1.0, 1.5):
        kept = GateMass(tau, scope)(gate, layout, Context()).bool()
        assert last is None or (kept | ~last).all()
        moved = GateMass(tau, scope)(gate * 0.37 - 5, layout, Context())
        assert torch.equal(moved.bool(), kept)
        have = (w * kept).sum(axes) / w.sum(axes)
        assert (have >= tau - 1e-9).all() or tau > 1
        worst = w.where(kept & ~own, float("inf")).amin(axes, keepdim=True)
        without = (w * (kept & ((w > worst) | own))).sum(axes) / w.sum(axes)
        routed = worst.isfinite().squeeze(axes)
        assert (without < tau + 1e-9)[routed].all() or tau >= 1
        last = kept
    equal = GateMass(0.5, scope)(torch.ones_like(gate), layout, Context())
    assert scope == "query" or equal.all()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("keep", [0.25, 0.5])
def test_keep_is_the_density(scope, keep):
    """In pairs exactly, up to whole rows or columns; in tokens nearly, though sizes are ragged."""
    plan = run(Problem.make(RAGGED, batch=1), 2, scope=scope, keep=keep)[1]
    share = plan.level.double().mean().item()
    # the least step of a pool, and in a block pool the own pairs that no budget removes
    step = {"head": 1 / 140, "overall": 1 / 280, "query": 1.0, "block": 1 / 2}[scope] / 8
    assert keep - step < share <= keep + (1e-9 if scope != "block" else step)
    assert plan.density().item() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("grid", [RAGGED, TEXT, Grid(1, 5, 9), Grid(1, 1, 1), Grid(20, 30, 41)])
def test_partitions_follow_the_layer(grid):
    """Three layers, three partitions, then again; ids agree with the grid, order is undone."""
    x = QKV(*[torch.zeros(1, 1, grid.tokens, 1)] * 3)
    first = grid.text if grid.text_first else 0
    for layer in (0, 1, 2) if grid.video > 9999 else range(6):
        q, kv = Partitions()(x, Context(grid, layer=layer))
        ids = block_ids(grid, ((8, 1, 1), (1, 6, 8), (3, 3, 8))[layer % 3])
        order = torch.arange(grid.tokens) if kv.order is None else kv.order[0, 0]
        assert torch.equal(order.sort().values, torch.arange(grid.tokens))
        assert q.order is kv.order or torch.equal(q.order, kv.order)
        assert q.size == 1 and q.count == grid.tokens and q.text_blocks == grid.text
        named = ids[order[: grid.video] - first]
        assert torch.equal(named, torch.arange(kv.video).repeat_interleave(
            kv.sizes()[0, 0, : kv.video]))  # fmt: skip
        one = Partitions(cycle="2")(x, Context(grid, layer=layer))
        assert one.kv.video == min(6, grid.height) * min(8, grid.width)


@pytest.mark.parametrize("scope", SCOPES)
def test_samples_do_not_meet(scope):
    problem = Problem.make(TEXT)
    both, _ = run(problem, 2, scope=scope)
    for i in range(2):
        alone, _ = run(problem, 2, x=QKV(*(t[i : i + 1] for t in problem.x)), scope=scope)
        assert torch.equal(alone, both[i : i + 1])
