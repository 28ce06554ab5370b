"""The printed matrix of models is what the tests found, for every row there is now."""

import json
from pathlib import Path

from typer.testing import CliRunner

from dit_sparse.cli import app
from dit_sparse.commands import models
from dit_sparse.commands.models import describe, document, recorded, static
from dit_sparse.integrations.adapters import adapters, refused
from tests.matrix import CHECKS, FILE, attached, measure, rows, traits

AGAIN = "run `python -m tests.matrix`, then `dit-sparse models --markdown > docs/models.md`"
ENTRIES = {entry["class"]: entry for entry in json.loads(FILE.read_text())["classes"]}
ROOT = Path(__file__).resolve().parent.parent


def test_the_file_has_every_row_and_no_other():
    assert set(ENTRIES) == set(adapters()), AGAIN
    for name, of in rows().items():
        entry = ENTRIES[name]
        assert entry["rows"] == [str(case) for case in of], f"{name}: {AGAIN}"
        assert {key: entry[key] for key in static()[name]} == static()[name], f"{name}: {AGAIN}"
        assert [text for text in entry["checked"] if text not in CHECKS] == traits(of), AGAIN
    assert recorded()["refused"] == refused(), AGAIN


def test_every_class_is_green():
    """What a class declares not to do (compile to one graph) is not expected."""
    for name, of in rows().items():
        expected = [text for text in CHECKS if text != "one graph" or all(c.compiles for c in of)]
        assert [text for text in ENTRIES[name]["checked"] if text in CHECKS] == expected, name


def test_a_row_is_what_a_run_finds(monkeypatch):
    """One cheap class is run again; a check that fails is not in its row."""
    name = "WanTransformer3DModel"
    of = rows()[name][:1]
    assert measure(name, of)["checked"] == [*CHECKS, *traits(of)]
    assert attached(of[0]) == ENTRIES[name]["attached"] == "dispatcher"
    monkeypatch.setattr(type(of[0]), "grids", lambda case: set())
    assert "sparse" not in measure(name, of)["checked"]


def test_printed():
    assert tuple(CHECKS) == models.CHECKS
    text = CliRunner().invoke(app, ["models", "--markdown"]).stdout
    assert text == document(describe()) == (ROOT / "docs/models.md").read_text(), AGAIN
    shown = CliRunner().invoke(app, ["models"], env={"COLUMNS": "80"}).stdout
    assert all(name in shown for name in (*adapters(), *refused()))
    assert len({line.count(" | ") for line in text.splitlines() if "Model | " in line}) == 2
