"""What the command line shows without a model: its help, its lists, and a disk that is full."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dit_sparse
from dit_sparse.media import part_file
from dit_sparse.quality.store import Store
from tests.test_cli import ROOT, check, run

HELP = ["--help", "--version", "generate --help", "eval --help", "bench kernel --help"]


def test_help_is_light():
    """What only reads the options waits for no torch, which takes a second."""
    code = (
        "import sys; from dit_sparse.cli import app\n"
        "for line in sys.argv[1:]:\n"
        "  try: app(line.split())\n"
        "  except SystemExit as e: assert not e.code, line\n"
        "  assert not {'torch', 'numpy'} & set(sys.modules), line"
    )
    told = subprocess.run([sys.executable, "-c", code, *HELP], cwd=ROOT, capture_output=True)
    assert told.returncode == 0, told.stderr.decode()


@pytest.mark.parametrize("command", [(), ("bench",)], ids=str)
def test_no_command_shows_the_help(command):
    result = run(*command)
    assert result.exit_code == 2 and "Usage" in result.stdout and not result.stderr, result.output


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    """The system tells no name where a write fails."""
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(*args):
        with part_file(tmp_path / "a.toml"):
            raise full

    monkeypatch.setattr("dit_sparse.commands.methods.describe", write)
    check(run("methods"), 1, [f"{tmp_path / 'a.toml'}: No space left"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_measurements_on_a_full_disk():
    with pytest.raises(OSError, match="/dev/full"):
        Store(Path("/dev/full")).add("key", {})


def test_help_and_version():
    assert run("--version").stdout.strip() == f"dit-sparse {dit_sparse.__version__}"
    for command in ("generate", "methods", "models"):
        result = run(command, "--help", env={"COLUMNS": "120"})
        assert result.exit_code == 0 and "--debug" in result.stdout


def test_methods():
    names = dit_sparse.methods()
    table, page = run("methods").stdout, run("methods", "pisa").stdout
    assert all(name in table for name in names)
    assert all(word in page for word in ("2602.01077", "Taylor", "keep=0.125", "Differs"))
    assert run("methods", "--quiet").stdout.split() == names
    facts = json.loads(run("methods", "--json").stdout)
    assert [fact["name"] for fact in facts] == names
    assert json.loads(run("methods", "pisa", "--json").stdout)["stages"]["compute"].startswith(
        "Att"
    )
    lines = run("methods", "--markdown").stdout.strip().splitlines()
    assert len(lines) == len(names) + 2 and len({line.count(" | ") for line in lines}) == 1
    check(run("methods", "piza"), 2, ["piza", "pisa"])


def test_models():
    facts = json.loads(run("models", "--json").stdout)
    assert "WanTransformer3DModel" in {fact["class"] for fact in facts}
    assert "WanTransformer3DModel" in run("models").stdout
    supported = [fact["class"] for fact in facts if fact["supported"]]
    assert run("models", "--quiet").stdout.split() == supported
