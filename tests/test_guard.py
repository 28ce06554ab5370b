"""The guard: a layer that is wrong goes dense, and its estimate is the error it stands for."""

import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from diffusers import WanPipeline
from torch._subclasses.fake_tensor import FakeTensorMode

import dit_sparse
from dit_sparse.compute.attend import Attend
from dit_sparse.core import QKV, Context, Grid, Heads
from dit_sparse.errors import ArgumentError
from dit_sparse.integrations import guard as module
from dit_sparse.integrations.guard import Guard, sampled
from dit_sparse.quality.watch import watching
from dit_sparse.reporting import Event
from dit_sparse.schedule import Schedule
from tests.probe import DRAFT, LAYERS, STEPS, quiet, run
from tests.tiny import hunyuan_video, lumina, prx, sd3
from tests.tiny_wan import tiny_wan

EXACT = {**DRAFT, "keep": 1.0}
attend = Attend.__call__


@dataclass(frozen=True)
class Wrong(Attend):
    """Makes the output of layer 1 wrong by a fifth, up to a step."""

    last: int = STEPS

    def __call__(self, x, plan, ctx):
        out = attend(self, x, plan, ctx)
        return out * 1.2 if ctx.layer == 1 and ctx.step <= self.last else out


def wrong(**fields):
    return replace(dit_sparse.get("draft", **EXACT), compute=Wrong(**fields))


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    return quiet(tiny_wan())


@pytest.fixture
def always(monkeypatch):
    """Every layer has its turn at every step."""
    monkeypatch.setattr(module, "LOOK", 0)


def test_a_wrong_layer_goes_dense_and_no_other(pipe, always):
    dit_sparse.enable(pipe, wrong(last=0))
    once = run(pipe)
    dit_sparse.enable(pipe, wrong(), guard=0.05)
    reports = []
    # the second generation starts afresh: it meets the same event again
    for _ in range(2):
        torch.testing.assert_close(run(pipe), once, rtol=1e-4, atol=1e-5)
        reports.append(dit_sparse.report(pipe))
        sparse = {(cell.layer, cell.step) for cell in reports[-1].cells if cell.sparse}
        assert sparse == {*((0, step) for step in range(STEPS)), (1, 0)}
    assert reports[0] == reports[1]
    event = Event("transformer", 1, 0, pytest.approx(0.2, rel=1e-4), 0.05)
    assert reports[0].guard.events == (event,)
    assert reports[0].reasons == {"guard: an error above 0.05": 2 * (STEPS - 1)}
    note = "guard: layer 1 of transformer is dense after step 0: error 0.2, bound 0.05"
    assert note in reports[0].notes and note in " ".join(str(reports[0]).split())
    told = json.loads(json.dumps(reports[0].to_dict()))["guard"]["events"]
    assert [Event(**one) for one in told] == [event]


def test_a_good_method_is_left_alone(pipe, always):
    dit_sparse.enable(pipe, "draft", **EXACT)
    base = run(pipe)
    assert dit_sparse.report(pipe).guard is None
    dit_sparse.enable(pipe, "draft", guard=0.05, **EXACT)
    assert torch.equal(run(pipe), base)
    found = dit_sparse.report(pipe)
    assert found.sparse_calls == found.calls == found.guard.looks == 2 * LAYERS * STEPS
    assert not found.guard.events and not found.notes and found.guard.worst < 1e-5
    assert "12 calls looked at, largest error" in str(found)


def test_experts_are_judged_apart(pipe, always):
    parts = {**pipe.components, "transformer_2": tiny_wan().transformer}
    pipe = quiet(WanPipeline(**parts, boundary_ratio=0.5))
    dit_sparse.enable(pipe, wrong(), guard=0.05)
    run(pipe)
    found = dit_sparse.report(pipe)
    first = {(c.transformer, 1, c.step) for c in found.cells if c.layer == 1 and c.sparse}
    assert {(e.transformer, e.layer, e.step) for e in found.guard.events} == first
    assert {name for name, *_ in first} == {"transformer", "transformer_2"} and len(first) == 2


def test_compiles_to_one_graph(pipe, always):
    graphs = []

    def backend(graph, inputs):
        return graphs.append(graph) or graph.forward

    dit_sparse.enable(pipe, wrong(), guard=0.05)
    eager, before = run(pipe), dit_sparse.report(pipe).guard
    pipe.transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
    torch.testing.assert_close(run(pipe), eager)
    (event,) = dit_sparse.report(pipe).guard.events
    assert len(graphs) == 1
    assert event.estimate == pytest.approx(before.events[0].estimate, rel=1e-4)


def test_judged_once_per_step(pipe, monkeypatch):
    """One wait per step; by default a layer of a model this narrow has one turn in all."""
    judged, judge = [], Guard.judge

    def counted(self):
        judged.append([(layer, step) for _, layer, step, _ in self.seen])
        judge(self)

    monkeypatch.setattr(Guard, "judge", counted)
    dit_sparse.enable(pipe, "draft", guard=0.9, **DRAFT)
    run(pipe)
    assert [one for one in judged if one] == [[(0, 0)] * 2, [(1, 2)] * 2]
    assert len(judged) <= STEPS + 1


CASES = [hunyuan_video.CASES[0], lumina.CASES[0], prx.CASES[0], sd3.CASES[0]]


def rows_of(call):
    """Return the squared error and norm of each token of the grid in float64, [B, H, S] each."""
    q, k, v = (t.double() for t in call.x)
    weights = (q @ k.mT * (call.ctx.scale or q.shape[-1] ** -0.5)).softmax(-1)
    first = call.ctx.grid.text if call.ctx.grid.text_first else 0
    at = slice(first, first + call.ctx.grid.video)
    true = (weights @ v)[:, :, at]
    off = call.out.double()[:, :, at] - true
    return off.square().sum(-1), true.square().sum(-1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_padding_and_groups(case, always, monkeypatch):
    """With all rows as the sample, the estimate is the error over the tokens of the grid."""
    monkeypatch.setattr(module, "ROWS", 1 << 20)
    model, sums = case.build(), defaultdict(lambda: torch.zeros(2, dtype=torch.float64))

    def add(call):
        sums[call.layer] += torch.stack([part.sum() for part in rows_of(call)])

    dit_sparse.enable(model, "draft", guard=1e-6, **{**DRAFT, "patch": (2, 2)})
    with watching(model, add):
        case.run(model)
    found = [event.estimate for event in dit_sparse.report(model).guard.events]
    errors = [math.sqrt(sums[layer][0] / sums[layer][1]) for layer in range(case.layers)]
    assert found == pytest.approx(errors, rel=1e-3)


def test_estimate_is_within_its_sampling_error():
    """4 standard errors of a ratio of sums over as many independent rows."""
    grid = Grid(3, 12, 14, text=9, text_first=True)
    g = torch.Generator().manual_seed(3)
    x = QKV(*(torch.randn(1, 4, grid.tokens, 16, generator=g) for _ in range(3)))
    method, ctx = dit_sparse.get("draft", **DRAFT), Context(grid=grid, steps=1)
    plan = method.plan(x, ctx)
    call = type("Call", (), {"x": x, "out": method.compute(x, plan, ctx), "ctx": ctx})
    off, size = rows_of(call)
    true = off.sum() / size.sum()
    number = 4 * module.ROWS
    deviation = (off - true * size).std() / size.mean() / math.sqrt(number)
    assert deviation < true / 10
    guard = Guard(0.01, Schedule())
    for _ in range(30):
        guard.look(x, call.out, 0, ctx)
    found = torch.tensor([(s[0] / s[1]).item() for *_, s in guard.seen], dtype=torch.float64)
    assert ((found - true).abs() < 4 * deviation).all() and found.unique().numel() == 30
    # every row is as probable as any other
    assert abs(found.mean() - true) < 4 * deviation / math.sqrt(30)


@pytest.mark.parametrize("tokens", [3, 64, 65, 1000])
def test_sampled_rows(tokens):
    looks = torch.stack([sampled(3, tokens, look, torch.device("cpu")) for look in range(400)])
    assert looks.shape[2] == min(tokens, module.ROWS)
    # neighbours hardly a token long may choose the same one
    assert (looks.diff(dim=2) >= (tokens != 65)).all() and looks.min() >= 0 and looks.max() < tokens
    share = 1200 * looks.shape[2] / tokens
    assert (looks.flatten().bincount(minlength=tokens) - share).abs().max() <= 4 * share**0.5
    if tokens > 2 * module.ROWS:
        assert all((looks.diff(dim=axis) != 0).any(2).all() for axis in (0, 1))


@pytest.mark.parametrize(
    ("heads", "dim", "steps", "dense"),
    [(40, 128, 50, 12), (12, 128, 50, 0), (4, 64, 20, 0), (2, 16, 9, 3), (2, 16, 1, 0)],
)
def test_turns_and_cost(heads, dim, steps, dense):
    """Every layer has a turn; no more than the cost allows, but for one in a generation."""
    guard = Guard(0.5, Schedule(dense_steps=dense))
    x = QKV(*torch.zeros(3, 1, 1, 4, dim))
    # one head of all is here
    context = Context(steps=steps, heads=Heads(0, heads))
    for step, layer in product(range(dense, steps), range(8)):
        guard.look(x, x.v, 0, replace(context, layer=layer, step=step))
    counts = Counter(layer for _, layer, *_ in guard.seen)
    cost = module.LOOK / (module.BLOCK * heads * dim)
    assert len(counts) == 8
    assert max(counts.values()) <= math.ceil((steps - dense) * module.COST / cost)


def test_waits_for_nothing():
    """Fake tensors have no values: whatever asks for one raises."""
    guard = Guard(0.05, Schedule())
    with FakeTensorMode():
        x = QKV(*torch.randn(3, 2, 4, 300, 16))
        guard.look(x, torch.randn(2, 4, 300, 16), 0, Context(grid=Grid(3, 10, 10)))
        with pytest.raises(Exception, match=r"_local_scalar_dense|data.dependent"):
            guard.judge()


@pytest.mark.parametrize("bound", [0, 1, 0.0, 1.0, -0.1, math.nan, math.inf, True, "0.05"])
def test_bad_bounds(pipe, bound):
    with pytest.raises(ArgumentError, match=r"guard=.* between 0 and 1") as caught:
        dit_sparse.enable(pipe, "draft", guard=bound)
    assert "\n" not in str(caught.value)
    assert not hasattr(pipe.transformer, "_diffusers_hook")
