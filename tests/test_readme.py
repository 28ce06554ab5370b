"""The README says what the code does now."""

import re
from pathlib import Path

from dit_sparse.commands.methods import markdown_table

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_method_table_is_generated():
    """`dit-sparse methods --markdown` prints the table to paste."""
    assert markdown_table().strip() in TEXT


def test_files_named_in_the_readme_exist():
    named = set(re.findall(r"`((?:dit_sparse|kernels|pipelines|tests|demos|docs)/[\w./-]+)`", TEXT))
    named |= set(re.findall(r"python ((?:tests|demos)/[\w./-]+\.py)", TEXT))
    named |= set(re.findall(r"\]\((?!http)([\w./-]+)\)", TEXT))
    example = {"dit_sparse/methods/x.py"}
    assert len(named) > 5
    assert not [name for name in named - example if not (ROOT / name).exists()]
    assert "<!--" not in TEXT
