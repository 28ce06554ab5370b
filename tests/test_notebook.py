"""The notebook of demos/, run as a reader would: every cell, in order."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

BOOK = Path(__file__).resolve().parent.parent / "demos" / "dense_to_sparse.ipynb"


@pytest.fixture(scope="module")
def book():
    book = nbformat.read(BOOK, 4)
    nbformat.validate(book)
    return book


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_ten_cells_without_old_output(book):
    assert len(code(book)) == 10
    assert not any(cell.outputs or cell.execution_count for cell in code(book))


def test_every_cell_runs(book, tmp_path, tmp_path_factory, monkeypatch):
    """And says what its heading promises; nothing is left behind, beside it or elsewhere."""
    monkeypatch.setenv("PYTHONPATH", str(BOOK.parent.parent))
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("scratch")))
    before = sorted(BOOK.parent.iterdir())
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    told = ["".join(out.get("text", "") for out in cell.outputs) for cell in code(book)]
    kinds = [{kind for out in cell.outputs for kind in out.get("data", {})} for cell in code(book)]
    assert "sparse" in told[2] and "PSNR" in told[4] and told[6].count("layer") == 8
    assert "image/gif" in kinds[3] and "image/png" in kinds[5]
    assert told[7].count("PSNR") == 4 and "PSNR" in told[9]
    # a long path is broken anywhere
    assert "mine.toml" in "".join(told[8].split())
    assert sorted(BOOK.parent.iterdir()) == before and not list(tmp_path.iterdir())
    assert not list(Path(os.environ["TMPDIR"]).glob("**/both.gif"))
