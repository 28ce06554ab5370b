"""The seam under other hosts: two experts, the compiler, parallelism, a transformer alone."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanPipeline

import dit_sparse
from dit_sparse.integrations.adapters import box, joined
from dit_sparse.integrations.seam import hook_of
from dit_sparse.integrations.sequence import REST
from tests.probe import DRAFT, LOG, STEPS, probe, quiet, run
from tests.tiny.case import cases
from tests.tiny_wan import tiny_wan


def test_two_experts_share_the_steps():
    pipe, other = tiny_wan(), tiny_wan()
    pipe = WanPipeline(
        **{**pipe.components, "transformer_2": other.transformer}, boundary_ratio=0.5
    )
    quiet(pipe)
    dit_sparse.enable(pipe, "draft", **{**DRAFT, "dense_steps": 0.25})
    run(pipe)
    cells = dit_sparse.report(pipe).cells
    parts = {
        name: {c.step for c in cells if c.transformer == name}
        for name in ("transformer", "transformer_2")
    }
    assert set.union(*parts.values()) == set(range(STEPS)) and all(parts.values())
    assert not set.intersection(*parts.values())
    assert {c.step for c in cells if not c.sparse} == {0}
    pipe.transformer = None
    dit_sparse.disable(pipe)


@pytest.mark.parametrize("regional", [False, True])
def test_compiles_to_one_graph(regional):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    pipe = quiet(tiny_wan())
    dit_sparse.enable(pipe, probe())
    eager, log = run(pipe), [entry[:4] for entry in LOG]
    LOG.clear()
    part = pipe.transformer
    (part.compile_repeated_blocks if regional else part.compile)(backend=backend, fullgraph=True)
    torch.testing.assert_close(run(pipe), eager)
    assert len(graphs) == 1 and [entry[:4] for entry in LOG] == log


PARALLEL = [
    ({"ring_degree": 2, "ulysses_degree": 1}, r"ring attention \(ring_degree=2\)"),
    ({"ring_degree": 1, "ulysses_degree": 4}, "2 heads, which 4 processes"),
]


@pytest.mark.parametrize(("degrees", "words"), PARALLEL)
def test_refuses_context_parallelism(degrees, words):
    model = tiny_wan().transformer
    parallel = SimpleNamespace(context_parallel_config=SimpleNamespace(**degrees))
    model.blocks[0].attn1.processor._parallel_config = parallel
    with pytest.raises(dit_sparse.DitSparseError, match=words):
        dit_sparse.enable(model, "pisa")
    assert not hasattr(model, "_diffusers_hook")


@pytest.mark.parametrize("undo", [False, True])
def test_nothing_keeps_a_model_alive(undo):
    model = tiny_wan().transformer
    dit_sparse.enable(model, probe())
    with torch.no_grad():
        model(torch.randn(1, 4, 3, 6, 10), torch.tensor([900.0]), torch.randn(1, 5, 16))
    if undo:
        dit_sparse.disable(model)
    left = weakref.ref(model)
    del model
    gc.collect()
    assert left() is None


def test_transformer_alone():
    """No pipeline and no cache context: steps by timestep values, also one per token."""
    model = tiny_wan().transformer
    dit_sparse.enable(model, probe())
    latents, text = torch.randn(1, 4, 3, 6, 10), torch.randn(1, 5, 16)
    with torch.no_grad():
        for value in (900.0, 900.0, 500.0, 500.0):
            model(latents, torch.full((1, 180), value), text)
    assert [entry[:2] for entry in LOG] == [(n, s) for s in (0, 0, 1, 1) for n in (0, 1)]
    assert len({entry[4] for entry in LOG}) == 4
    assert dit_sparse.report(model).steps == 0


def ids(frames, height, width):
    return torch.cartesian_prod(*(torch.arange(n) for n in (frames, height, width)))


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 5, 3), (2, 4, 1), (3, 1, 300), (1, 300, 3)])
def test_box_of_token_positions(size):
    rows = ids(*size)
    found = (*size, 0)
    assert box(rows) == box(rows[None]) == box(rows.bfloat16() + 2) == box(rows.flip(0)) == found
    assert box(torch.cat([rows, torch.ones(len(rows), 1)], 1)) == found
    if len(rows) > 4:
        assert box(rows[:-1]) != found


def test_positions_written_anew_are_read_anew():
    """In place, or in the memory of others that are gone."""
    model = cases()[0].build()
    session = hook_of(dit_sparse.enable(model, "draft")).session
    sizes = [1, 8, 6, REST, 0]
    rows = ids(2, 6, 4)
    assert session._placed(0, rows, sizes)[:3] == [2, 6, 4]
    rows.copy_(ids(4, 3, 4))
    assert session._placed(0, rows, sizes)[:3] == [4, 3, 4]
    address = rows.data_ptr()
    del rows
    again = [ids(2, 6, 4) for _ in range(9)]
    assert all(t.data_ptr() != address for t in again), "the memory is not held"
    assert session._placed(0, again[0], sizes)[:3] == [2, 6, 4]


def test_box_of_several_pictures():
    """The first one and those of its size; what else is there are extra tokens."""
    first, second, other = (ids(1, 4, 4) + torch.tensor([n, 0, 0]) for n in (0, 10, 20))
    assert box(torch.cat([first, second, ids(1, 3, 5) + 30])) == (2, 4, 4, 15)
    assert box(torch.cat([first, ids(1, 3, 5) + 1, other])) == (1, 4, 4, 31)
    assert joined([(1, 4, 4), (2, 4, 4), (1, 3, 5), (1, 4, 4)]) == (3, 4, 4, 31)
    assert box(ids(5, 1, 1).expand(5, 3)) == (5, 1, 1, 0)
    assert box(torch.tensor([[0, 0, 0], [1, 1, 1], [2, 2, 2]])) is None
