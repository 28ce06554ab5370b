"""Methods for the prefill of language models, on videos: all but those that need a past."""

import pytest
import torch

import dit_sparse
from dit_sparse import testing
from dit_sparse.errors import ArgumentError
from tests.probe import quiet, run
from tests.test_methods import SMALL
from tests.tiny_wan import tiny_wan

RUNS = ("moba", "seer", "xattention")
REFUSED = {
    "anchor": "causal window",
    "minference": "distances to the past",
    "pbs_attn": "segments",
    "blasst": "language models",
    "delta": "language models",
}


def test_every_method_is_here():
    assert set(RUNS) == set(testing.of_phase("prefill")) - set(REFUSED)


@pytest.mark.parametrize(
    "prop",
    [
        "plan_is_valid", "dense_limit", "kernel_equals_reference", "batch_independent",
        "grouped_heads", "density_is_counted",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", RUNS)
def test_the_suite(name, prop, monkeypatch):
    monkeypatch.setattr(testing, "shapes", lambda found: testing.GRIDS)
    testing.check_property(name, prop, **SMALL[name])


@pytest.mark.parametrize("name", RUNS)
def test_in_a_pipeline(name):
    pipe = quiet(tiny_wan())
    dense = run(pipe)
    dit_sparse.enable(pipe, name, dense_steps=0.5, **SMALL[name])
    sparse, found = run(pipe), dit_sparse.report(pipe)
    assert 0 < found.sparse_calls < found.calls and not torch.equal(sparse, dense)
    assert found.reasons["schedule: a dense first step"] == found.calls - found.sparse_calls
    assert torch.equal(run(dit_sparse.disable(pipe)), dense)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises(ArgumentError, match=REFUSED[name]):
        dit_sparse.enable(quiet(tiny_wan()), name)
