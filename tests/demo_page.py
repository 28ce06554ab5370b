"""Fixtures of a running demo page; a test module takes them by `pytest_plugins`.

One server serves all tests of a run: its first model is tiny and has an evaluation, the second is
the built-in one.
"""

import pytest

from dit_sparse.demos import evaluations
from tests.browser import LARGE, LONG, opened, served, visit
from tests.demo_material import made
from tests.tiny_wan import TRAINED, save


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """The folder for temporary files of the server."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A model folder with an evaluation beside it."""
    more = {"sizes": [*TRAINED["sizes"], [*LARGE]], "frames": [*TRAINED["frames"], LONG]}
    trained = {**TRAINED, **more}
    folder = save(tmp_path_factory.mktemp("model"), trained)
    made().write(folder / evaluations.FILE)
    return folder


@pytest.fixture(scope="session")
def address(tiny, scratch):
    """The address of the page."""
    pytest.importorskip("gradio", reason="no gradio: pip install -e '.[test]'")
    words = ("--model", str(tiny), "--model", "shapes", "--device", "cpu")
    with served(*words, scratch=scratch) as address:
        yield address
    assert not list(scratch.glob("dit-sparse-demo-*")), "the server left files behind"


@pytest.fixture(scope="module")
def browser():
    """A browser of this machine."""
    with opened() as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    """The page, as a new visitor sees it."""
    with visit(browser, address) as page:
        yield page


@pytest.fixture(scope="module")
def client(address):
    """A visitor without a browser: the functions of the page, one by one."""
    from gradio_client import Client

    client = Client(address, verbose=False, download_files=False)
    yield client
    client.close()
