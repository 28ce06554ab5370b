"""Every registered method against every property: a new method file adds its rows by itself."""

import pytest

from dit_sparse import methods
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
