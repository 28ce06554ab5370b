"""Every registered method against every property: a new method file adds its rows by itself."""

import pytest

from dit_sparse import methods
from dit_sparse.registry import entry
from dit_sparse.testing import PROPERTIES, check_property


@pytest.mark.parametrize("prop", PROPERTIES)
@pytest.mark.parametrize("name", methods())
def test_conformance(name, prop):
    check_property(name, prop)


@pytest.mark.parametrize("name", methods())
def test_declared_misses_exist(name):
    assert set(entry(name).xfail) <= set(PROPERTIES)
