"""Every registered method against every property: a new method file adds its rows by itself."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_sparse import Grid, attention, methods
from dit_sparse.registry import entry
from dit_sparse.testing import PROPERTIES, check_property

# of language models: sizes that leave something out of a few hundred tokens
SMALL = {
    "anchor": {"block": 16, "step": 2, "theta": 1.0},
    "blasst": {"block": (16, 16), "factor": 60.0},
    "hylra": {"tokens": 32, "block": 16},
    "minference": {"columns": 30, "slashes": 50, "sink": 3, "local": 8, "block": 16},
    "moba": {"topk": 3, "block": 16},
    "pbs_attn": {"block": 16, "segment": 32, "top_p": 0.7},
    "seer": {"block": 16, "threshold": 0.03},
    "xattention": {"block": 16, "tau": 0.6},
}


@pytest.mark.parametrize("prop", PROPERTIES)
@pytest.mark.parametrize("name", methods())
def test_conformance(name, prop):
    check_property(name, prop)


@pytest.mark.parametrize("prop", PROPERTIES)
@pytest.mark.parametrize("name", sorted(set(SMALL) & set(methods())))
def test_conformance_of_small_blocks(name, prop):
    check_property(name, prop, **SMALL[name])


@pytest.mark.parametrize("name", methods())
def test_declared_misses_exist(name):
    assert set(entry(name).xfail) <= set(PROPERTIES)


# these take causal attention alone
CAUSAL = {"anchor", "minference", "pbs_attn"}


@pytest.mark.parametrize("name", methods())
def test_fake_tensors_leave_nothing_behind(name):
    """A tool may trace shapes first: what is kept from call to call is never fake."""
    grid = Grid(2, 5, 7)
    x = torch.randn(3, 1, 2, grid.tokens, 16).unbind()
    options = {"causal": True} if name in CAUSAL else {"grid": grid}
    with FakeTensorMode() as fake:
        traced = attention(*map(fake.from_tensor, x), name, **options)
    out = attention(*x, name, **options)
    assert type(out) is torch.Tensor and out.shape == traced.shape and out.isfinite().all()
