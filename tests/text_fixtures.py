"""Fixtures of tiny text models; a test module takes them by `pytest_plugins`."""

import pytest
import torch

from tests.tiny_text import TOKENS


@pytest.fixture
def ids():
    """Two texts of random tokens, [2, TOKENS]."""
    return torch.randint(2, 61, (2, TOKENS))
