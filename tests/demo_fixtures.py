"""Fixtures of the parts of the demo page; a test module takes them by `pytest_plugins`."""

import pytest

from dit_sparse.demos.runner import Runner
from tests.tiny_wan import save


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with a tiny model."""
    return str(save(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def runner():
    """Who has the device."""
    return Runner("cpu")
