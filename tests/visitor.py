"""A visitor of a running demo page who has no browser: the functions of the page, one by one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser import served


@contextmanager
def visited(model: Path, scratch: Path) -> Iterator[Any]:
    """Run the page with a model folder; gives a client, which is one visitor."""
    pytest.importorskip("gradio", reason="no gradio: pip install -e '.[test]'")
    from gradio_client import Client

    with served("--model", str(model), "--device", "cpu", scratch=scratch) as address:
        client = Client(address, verbose=False, download_files=False)
        try:
            yield client
        finally:
            client.close()
