"""A method of another package: declared by an entry point, it is one as all others."""

import sys

import pytest
from typer.testing import CliRunner

import dit_sparse
from dit_sparse import plugins, registry
from dit_sparse.cli import app
from dit_sparse.errors import ArgumentError, MissingDependencyError
from dit_sparse.testing import check_property

MODULE = '''"""Mine (arXiv 2601.00000).

    1. raster blocks  -> arrange
    2. mean . mean    -> score
    3. the best keep  -> select
    4. exact          -> compute

Differs from the paper: none known.
"""

from dit_sparse import Method, register
from dit_sparse.arrange.raster import Raster
from dit_sparse.compute.attend import Attend
from dit_sparse.compute.remainder import Drop
from dit_sparse.score.pooled import PooledDot
from dit_sparse.select.topk import TopK


@register("mine", arxiv="2601.00000")
def mine(keep=0.2):
    return Method(Raster(16), PooledDot(), TopK(keep), Attend(remainder=Drop()))
'''
WORKS = {"mine": "their_package", "pisa": "their_package"}
FAILS = {
    "other": ("their_package", "their_package does not register it"),
    "broken": ("their_broken_package", "their_broken_package cannot be imported .ModuleNotFoundE"),
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Declare methods of a package, as an installer does."""
    (tmp_path / "their_package.py").write_text(MODULE)
    (tmp_path / "their_broken_package.py").write_text("import not_installed")
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def declare(points):
        lines = ["[dit_sparse.methods]", *(f"{name} = {where}" for name, where in points.items())]
        (about / "entry_points.txt").write_text("\n".join(lines))
        plugins.modules.cache_clear()
        plugins._broken.cache_clear()

    yield declare
    declare({})
    registry._entries.pop("mine", None)
    sys.modules.pop("their_package", None)


def test_found_built_and_listed(install):
    install(WORKS)
    assert {"mine", "pisa"} <= set(dit_sparse.methods())
    assert dit_sparse.get("mine", keep=0.5) == dit_sparse.get("mine", keep=0.5)
    with pytest.raises(ArgumentError, match="'mine' has no parameter 'kep'"):
        dit_sparse.get("mine", kep=0.5)
    shown = CliRunner().invoke(app, ["methods", "mine"])
    assert shown.exit_code == 0 and "Differs from the paper" in shown.output
    # ours keep their names
    assert dit_sparse.get("pisa").arrange != dit_sparse.get("mine").arrange


@pytest.mark.parametrize("prop", ["dense_limit", "plan_is_valid", "is_documented"])
def test_the_suite_takes_it(install, prop):
    install(WORKS)
    check_property("mine", prop)


@pytest.mark.parametrize("name", FAILS)
def test_one_that_cannot_be_had_hides_no_other(install, name):
    module, why = FAILS[name]
    install(WORKS | {name: module})
    with pytest.raises(MissingDependencyError, match=f"^method='{name}' cannot be had: {why}"):
        dit_sparse.get(name)
    with pytest.warns(UserWarning, match=f"'{name}' cannot be had: {why}.*left out"):
        shown = CliRunner().invoke(app, ["methods", "--quiet"])
    names = set(shown.output.split())
    assert shown.exit_code == 0 and {"mine", "pisa"} <= names and name not in names
