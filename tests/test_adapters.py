"""Every supported transformer class: dense limit, sparse at an odd grid, padding, undone."""

import pytest
import torch

import dit_sparse
from dit_sparse.integrations.adapters import adapters
from tests.probe import LOG, probe
from tests.tiny.case import cases

ROWS = cases()
ALL = pytest.mark.parametrize("case", ROWS, ids=str)
# every block is kept, in an order of its own
LIMIT = {"keep": 1.0, "patch": (3, 2), "dense_steps": 0, "dense_layers": 0}


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_every_class_has_a_row():
    assert {case.model for case in ROWS} == set(adapters())


@ALL
def test_dense_limit_and_undone(case):
    model = case.build()
    base, keys, config = case.run(model), list(model.state_dict()), dict(model.config)
    # the last is dense by its schedule: padding is cut out there, too
    for method, params in (
        ("dense", {}),
        ("draft", LIMIT),
        ("draft", {**LIMIT, "dense_steps": 1.0}),
    ):
        dit_sparse.enable(model, method, **params)
        close(case.run(model), base)
        report = dit_sparse.report(model)
        sparse = report.calls - case.others * case.layers
        assert report.sparse_calls == (sparse if params is LIMIT else 0)
        assert list(model.state_dict()) == keys and dict(model.config) == config
    dit_sparse.disable(model)
    assert all(torch.equal(a, b) for a, b in zip(case.run(model), base, strict=True))


@ALL
def test_sparse(case):
    """All self-attention and nothing else is sparse, of every sample its valid tokens alone."""
    model = case.build()
    base = case.run(model)
    dit_sparse.enable(model, probe())
    both = case.run(model)
    assert all(out.isfinite().all() for out in both)
    assert not all(torch.equal(a, b) for a, b in zip(both, base, strict=True))
    cells = dit_sparse.report(model).cells
    assert [cell.layer for cell in cells] == list(range(case.layers))
    assert all(cell.sparse == cell.calls - case.others for cell in cells)
    assert all(sum(cell.reasons.values()) == case.others for cell in cells)
    grids = {(g.frames, g.height, g.width, g.text) for *_, g in LOG}
    assert grids == case.grids()


@ALL
def test_samples_do_not_mix(case):
    """A batch gives what its samples give alone; two calls of CFG are the same as one of two."""
    model = case.build()
    dit_sparse.enable(model, "draft", **{**LIMIT, "keep": 0.5})
    both = case.run(model)
    for number in range(len(case.texts)):
        close(case.run(model, alone=number), [out[number : number + 1] for out in both])


@pytest.mark.parametrize("case", [c for c in ROWS if c.compiles], ids=str)
def test_compiles_to_one_graph(case):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    # all rows share the code of the hook, and only so many graphs of one are kept
    torch.compiler.reset()
    model = case.build()
    dit_sparse.enable(model, probe())
    eager = case.run(model)
    LOG.clear()
    model.compile(backend=backend, fullgraph=True)
    close(case.run(model), eager)
    assert len(graphs) == 1 and {entry[0] for entry in LOG} == set(range(case.layers))
