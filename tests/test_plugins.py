"""A method of another package: declared by an entry point, it is one as all others."""

import sys

import pytest
from typer.testing import CliRunner

import dit_sparse
from dit_sparse import registry
from dit_sparse.cli import app
from dit_sparse.errors import ArgumentError, UnknownNameError
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
POINTS = """[dit_sparse.methods]
mine = their_package
pisa = their_package
other = their_package
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with methods, as an installer leaves it."""
    (tmp_path / "their_package.py").write_text(MODULE)
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._modules.cache_clear()
    yield
    registry._modules.cache_clear()
    registry._entries.pop("mine", None)
    sys.modules.pop("their_package", None)


def test_found_built_and_listed(installed):
    assert {"mine", "pisa"} <= set(dit_sparse.methods())
    assert dit_sparse.get("mine", keep=0.5) == dit_sparse.get("mine", keep=0.5)
    with pytest.raises(ArgumentError, match="'mine' has no parameter 'kep'"):
        dit_sparse.get("mine", kep=0.5)
    shown = CliRunner().invoke(app, ["methods", "mine"])
    assert shown.exit_code == 0 and "Differs from the paper" in shown.output
    # ours keep their names
    assert dit_sparse.get("pisa").arrange != dit_sparse.get("mine").arrange


@pytest.mark.parametrize("prop", ["dense_limit", "plan_is_valid", "is_documented"])
def test_the_suite_takes_it(installed, prop):
    check_property("mine", prop)


def test_an_entry_point_without_its_method(installed):
    with pytest.raises(UnknownNameError, match=r"^method='other' is not in their_package; nearest"):
        dit_sparse.get("other")
