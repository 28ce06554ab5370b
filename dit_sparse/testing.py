"""The conformance suite: what every registered method must hold, also for methods out of tree.

    from dit_sparse.testing import check_method
    check_method("pisa")

A property that a method misses by its nature is declared in `@register(..., xfail={...})`; a
declared miss that holds after all is an error, so no declaration outlives its reason. A method
whose schedule names a phase of language models runs causally, on sequences without a grid. Tensors
are made on torch's default device: `torch.set_default_device("cuda")` runs the suite on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import signature
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dit_sparse import tokens as axis
from dit_sparse.compute.attend import dense
from dit_sparse.core import QKV, Context, Grid, Method
from dit_sparse.kernels.lists import pack_lists
from dit_sparse.kernels.pyramid import level_lists
from dit_sparse.profile import Profile
from dit_sparse.registry import Entry, entry, methods
from dit_sparse.select.topk import TopK

GRIDS = {
    "even": Grid(4, 8, 16),
    "odd": Grid(3, 7, 13),
    "image": Grid(1, 11, 18),
    "text last": Grid(3, 8, 9, text=17),
    "text first": Grid(2, 9, 16, text=5, text_first=True),
}
# (queries, keys): the queries are the last ones
PREFILLS = {"even": (256, 256), "odd": (201, 201), "text last": (93, 330), "short": (40, 41)}
DECODES = {"even": (1, 1280), "odd": (1, 1201), "text last": (3, 1330), "short": (1, 2)}
Shape = Grid | tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """Random tensors, on a grid or causal without one, and the context that goes with them."""

    grid: Grid | None
    x: QKV

    @classmethod
    def make(cls, of: Shape, batch: int = 2, heads: int = 2, dim: int = 16, seed: int = 0):
        """Draw q, k, v [B, H, S, D] float64 whose neighbours resemble each other.

        of: a grid, or the numbers of queries and of keys of causal attention.
        """
        g = torch.Generator("cpu").manual_seed(seed)
        grid = of if isinstance(of, Grid) else None
        queries, keys = (of.tokens, of.tokens) if isinstance(of, Grid) else of
        shape = (2, 3, batch, heads, keys, dim)
        # the same numbers on every device, then moved to the default one
        drift, noise = torch.randn(shape, generator=g, dtype=torch.float64, device="cpu")
        drift = drift.cumsum(-2)
        drift = drift - drift.mean(-2, keepdim=True)
        drift = 1.5 * drift / drift.std(-2, keepdim=True, correction=0).clamp(min=1e-6)
        q, k, v = (drift + noise).to(torch.get_default_device())
        return cls(grid, QKV(q[:, :, keys - queries :], k, v))

    def to(self, dtype: torch.dtype) -> Problem:
        """Return the problem in another dtype."""
        return replace(self, x=QKV(*(t.to(dtype) for t in self.x)))

    def context(self, impl: str = "reference", **fields: object) -> Context:
        """Return a fresh context for one call."""
        # of language models, a layer that some methods treat unlike the first ones
        causal = {"causal": True, "layer": 3} if self.grid is None else {}
        return replace(Context(self.grid, impl=impl, step=5, steps=10), **{**causal, **fields})

    def run(self, method: Method, impl: str = "reference", **fields: object) -> Tensor:
        """Return the method's output."""
        return method(self.x, self.context(impl, **fields))


def of_phase(*phases: str) -> list[str]:
    """Return the names of the methods for these phases of language models; "": for videos."""
    return [name for name in methods() if entry(name).build().schedule.phase in phases]


def shapes(found: Entry) -> Mapping[str, Shape]:
    """Return what a method is tried on, by name."""
    phase = found.build().schedule.phase
    return GRIDS if not phase else DECODES if phase == "decode" else PREFILLS


def lengths(found: Entry) -> Iterator[Shape]:
    """Yield short and awkward lengths."""
    phase = found.build().schedule.phase
    for tokens in (1, 63, 64, 65, 130):
        if not phase:
            yield from (Grid(1, 1, tokens), Grid(tokens, 1, 1), Grid(1, 1, tokens, text=3))
        elif phase == "decode":
            yield from ((1, tokens), (min(3, tokens), tokens))
        else:
            yield from ((tokens, tokens), (tokens, tokens + 37))


def relative_error(out: Tensor, truth: Tensor) -> float:
    """Return ||out - truth|| / ||truth||, in float64."""
    truth = truth.double()
    return ((out.double() - truth).norm() / truth.norm()).item()


def rounding_band(dtype: torch.dtype) -> float:
    """Return the relative error that storing a result in `dtype` may cost on its own."""
    return torch.finfo(dtype).eps


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what `torch.empty` and its kin return with NaN, so that unwritten memory shows."""

    new_empty = Tensor.new_empty

    def filled(make: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        out = make(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    with (
        mock.patch.object(torch, "empty", partial(filled, torch.empty)),
        mock.patch.object(torch, "empty_like", partial(filled, torch.empty_like)),
        # a method: the wrapper must be a function, to be bound
        mock.patch.object(Tensor, "new_empty", lambda *a, **k: filled(new_empty, *a, **k)),
    ):
        yield


@contextmanager
def packed() -> Iterator[list[tuple[int, int]]]:
    """Collect (most entries of a row, capacity) of every list that any module packs."""
    found: list[tuple[int, int]] = []
    loaded = [m for m in sys.modules.values() if isinstance(m, ModuleType)]

    def watched(real: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
        def pack(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
            given = signature(real).bind(*args, **options).arguments
            count, _ = real(**{**given, "capacity": None})
            lists = real(*args, **options)
            found.append((int(count.max()), lists[1].shape[-1]))
            return lists

        return pack

    with ExitStack() as stack:
        for real in (pack_lists, level_lists):
            for module in loaded:
                if vars(module).get(real.__name__) is real:
                    patch = mock.patch.object(module, real.__name__, watched(real))
                    stack.enter_context(patch)
        yield found


def check_lists(method: Method, problem: Problem) -> None:
    """Raise AssertionError when a list of a call is too short for what its rows keep.

    Also for queries of zero: where all scores are equal, a share of their mass is most blocks.
    """
    for x in (problem.x, problem.x._replace(q=torch.zeros_like(problem.x.q))):
        ctx = problem.context("auto")
        with packed() as lists:
            plan = method.plan(x, ctx)
            method.compute(x, plan, ctx)
        if plan.capacity is not None:
            lists.append((int((plan.level == 1).sum(-1).max()), plan.capacity))
        for most, capacity in lists:
            assert most <= capacity, f"a row keeps {most} blocks, its list holds {capacity}"


def _is_a_value(found: Entry) -> None:
    method = found.build()
    assert method == found.build() and hash(method) == hash(found.build())
    # TOML holds no None: a parameter that defaults to it is simply absent
    params = {k: v for k, v in found.parameters.items() if v is not None}
    profile = Profile("any", found.name, params)
    again = Profile.from_toml(profile.to_toml())
    assert again.build() == method, "parameters do not survive TOML"


def _plan_is_valid(found: Entry) -> None:
    for of in shapes(found).values():
        problem = Problem.make(of)
        plan = found.build().plan(problem.x, problem.context())
        for blocks in plan.layout:
            if blocks.order is not None:
                every = torch.arange(blocks.length).expand_as(blocks.order)
                assert torch.equal(blocks.order.sort(-1).values, every), "order is no bijection"
            bounds = blocks.bounds(plan.level.device)
            assert (bounds.diff() >= 0).all() and (bounds[..., -1] == blocks.length).all()
            assert blocks.sizes(plan.level.device).max() <= blocks.size
            text = blocks.length - bounds[..., blocks.video]
            stated = problem.grid.text if problem.grid else 0
            # the last tokens of a video of many blocks may stand with its text
            more = blocks.size - 1 if stated and blocks.video >= axis.MANY else 0
            assert ((stated <= text) & (text <= stated + more)).all(), "misplaced text"
        assert [b.length for b in plan.layout] == [t.shape[2] for t in problem.x[:2]]
        assert plan.level.dtype == torch.int8 and (plan.level >= 0).all()
        kept = plan.level == 1
        assert kept.any(-1).all(), "a row keeps no block"
        if plan.causal:
            assert not plan.level[plan.pairs().expand_as(plan.level) == 0].any(), "a future block"
        q, kv = plan.layout
        assert kept[..., q.video :, :].all() and kept[..., :, kv.video :].all(), "text left out"
        count, index = plan.lists()
        valid = torch.arange(index.shape[-1]) < count[..., None]
        listed = torch.zeros_like(kept).scatter_(-1, index.long(), valid)
        assert torch.equal(listed, kept), "the lists differ from the levels"


def _lists_lose_nothing(found: Entry) -> None:
    """All implementations read the same lists: none would show a block that is missing there."""
    budgets = [{"keep": k} for k in (0.05, 0.3, 0.9)] if "keep" in found.parameters else []
    for name in ("even", "text last"):
        for params in ({}, *budgets):
            check_lists(found.build(**params), Problem.make(shapes(found)[name]))


def _dense_limit(found: Entry) -> None:
    for of in shapes(found).values():
        problem = Problem.make(of)
        out = problem.run(replace(found.build(), select=TopK(1.0)))
        assert relative_error(out, dense(problem.x, problem.context())) < 1e-12


def _kernel_equals_reference(found: Entry) -> None:
    """On one plan, so that ties in a top-k cannot fail a correct kernel."""
    method = found.build()
    for of in shapes(found).values():
        exact, single = Problem.make(of), Problem.make(of).to(torch.float32)
        plan = method.plan(exact.x, exact.context())
        truth = method.compute(exact.x, plan, exact.context())
        eager = method.compute(single.x, plan, single.context())
        out = method.compute(single.x, plan, single.context("auto"))
        bound = 2 * relative_error(eager, truth) + rounding_band(torch.float32)
        assert relative_error(out, truth) <= bound


def _batch_independent(found: Entry) -> None:
    problem, method = Problem.make(shapes(found)["odd"]), found.build()
    both = problem.run(method)
    for i in range(2):
        alone = replace(problem, x=QKV(*(t[i : i + 1] for t in problem.x))).run(method)
        assert relative_error(alone, both[i : i + 1]) < 1e-12


def _head_equivariant(found: Entry) -> None:
    problem, method = Problem.make(shapes(found)["odd"]), found.build()
    turned = replace(problem, x=QKV(*(t.flip(1) for t in problem.x)))
    assert relative_error(turned.run(method).flip(1), problem.run(method)) < 1e-12


def _deterministic(found: Entry) -> None:
    problem, method = Problem.make(shapes(found)["even"]), found.build()
    first, second = (method.plan(problem.x, problem.context()).level for _ in range(2))
    assert torch.equal(first, second)


def _keeps_dtype_and_shape(found: Entry) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for impl in ("reference", "auto"):
            problem = Problem.make(shapes(found)["text last"]).to(dtype)
            with poisoned():
                out = problem.run(found.build(), impl)
            assert out.dtype == dtype and out.shape == problem.x.q.shape and out.isfinite().all()


def _any_length(found: Entry) -> None:
    for of in lengths(found):
        problem = Problem.make(of, batch=1)
        assert problem.run(found.build(), "auto").isfinite().all()


def _grouped_heads(found: Entry) -> None:
    """Grouped key heads equal the same heads repeated."""
    problem, method = Problem.make(shapes(found)["odd"], heads=4), found.build()
    few = QKV(problem.x.q, problem.x.k[:, ::2], problem.x.v[:, ::2])
    many = QKV(few.q, *(t.repeat_interleave(2, dim=1) for t in few[1:]))
    for impl in ("reference", "auto"):
        out = replace(problem, x=few).run(method, impl)
        assert relative_error(out, replace(problem, x=many).run(method, impl)) < 1e-10


def _budget_lowers_error(found: Entry) -> None:
    if "keep" not in found.parameters:
        return
    problem = Problem.make(Grid(8, 12, 16), batch=1)
    truth = dense(problem.x, problem.context())
    errors = [relative_error(problem.run(found.build(keep=k)), truth) for k in (0.1, 0.4, 1.0)]
    assert errors[0] * 1.05 >= errors[1] and errors[1] * 1.05 >= errors[2], errors


def _state_is_clean(found: Entry) -> None:
    """A reset state equals a fresh one, and two CFG branches do not mix."""
    one, two = (Problem.make(shapes(found)["even"], seed=s) for s in (1, 2))
    method = found.build()
    states: tuple[dict, dict] = ({}, {})
    mixed = [
        p.run(method, step=step, state=state)
        for step in (4, 5)
        for p, state in zip((one, two), states, strict=True)
    ]
    state: dict = {}
    alone = [one.run(method, step=step, state=state) for step in (4, 5)]
    state.clear()
    again = one.run(method, step=4, state=state)
    pairs = ((mixed[0], alone[0]), (mixed[2], alone[1]), (again, alone[0]))
    # not bit by bit: on a GPU the reference adds in an order of its own
    assert all(relative_error(a, b) < 1e-12 for a, b in pairs)


def _density_is_counted(found: Entry) -> None:
    for of in shapes(found).values():
        problem = Problem.make(of)
        plan = found.build().plan(problem.x, problem.context())
        q, kv = (blocks.sizes(plan.level.device).expand(2, 2, -1) for blocks in plan.layout)
        counted = torch.stack(
            [
                plan.level[b, h].repeat_interleave(q[b, h], 0).repeat_interleave(kv[b, h], 1)
                for b in range(2)
                for h in range(2)
            ]
        ).double()
        # a pooled level l has one column for 2^(l-1) keys
        counted = (counted > 0) * 2 ** (1 - counted)
        seen = torch.ones_like(counted[0])
        if plan.causal:
            seen = seen.tril_(plan.layout.kv.length - plan.layout.q.length)
        share = (counted * seen).sum() / (seen.sum() * len(counted))
        assert abs(share.item() - plan.density().item()) < 1e-5


def _is_documented(found: Entry) -> None:
    assert found.arxiv and found.arxiv in found.doc, "the docstring lacks the arXiv id"
    for stage in ("arrange", "score", "select", "compute"):
        assert f"-> {stage}" in found.doc, f"the algorithm box lacks '-> {stage}'"
    assert "Differs from the paper" in found.doc


PROPERTIES: dict[str, Callable[[Entry], None]] = {
    check.__name__.strip("_"): check
    for check in (
        _is_a_value,
        _plan_is_valid,
        _lists_lose_nothing,
        _dense_limit,
        _kernel_equals_reference,
        _batch_independent,
        _head_equivariant,
        _deterministic,
        _keeps_dtype_and_shape,
        _any_length,
        _grouped_heads,
        _budget_lowers_error,
        _state_is_clean,
        _density_is_counted,
        _is_documented,
    )
}


def check_property(name: str, prop: str, **params: Any) -> None:
    """Check one property of one method; a declared miss must really miss.

    params: of the method, instead of its defaults.
    """
    found = entry(name)
    if params:
        # under the name and module of the original, from which its documentation is read
        build, form = found.build, signature(found.build)
        given = wraps(build)(lambda **more: build(**{**params, **more}))
        defaults = [p.replace(default=params.get(n, p.default)) for n, p in form.parameters.items()]
        given.__dict__["__signature__"] = form.replace(parameters=defaults)
        found = replace(found, build=given)
    reason = found.xfail.get(prop)
    try:
        PROPERTIES[prop](found)
    except AssertionError as error:
        if reason is None:
            raise AssertionError(f"{name} misses {prop}: {error}") from error
        return
    assert reason is None, f"{name} declares to miss {prop} ({reason}) but holds it"


def check_method(name: str) -> None:
    """Check every property of a registered method; raises AssertionError at the first miss."""
    for prop in PROPERTIES:
        check_property(name, prop)
