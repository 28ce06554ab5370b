"""The command `demo`, and the parts of its page that know no model: files and charts."""

import re

import pytest
from typer.testing import CliRunner

from dit_sparse import cli
from dit_sparse.demos import chart
from dit_sparse.demos.files import KEPT, Files


def test_files_go_with_their_visitor(tmp_path):
    files = Files(tmp_path)
    folders = [files.new("a") for _ in range(KEPT + 2)]
    assert [folder.is_dir() for folder in folders] == [False] * 2 + [True] * KEPT
    other = files.new("b")
    files.drop("a")
    files.drop("a")
    assert list(tmp_path.iterdir()) == [other]


def test_old_files_go_even_if_nobody_says_goodbye(tmp_path, monkeypatch):
    files, now = Files(tmp_path), [0.0]
    monkeypatch.setattr("dit_sparse.demos.files.time.monotonic", lambda: now[0])
    files.new("a")
    now[0] = 4000.0
    fresh = files.new("b")
    assert list(tmp_path.iterdir()) == [fresh]


def test_copies_stay(tmp_path):
    """What is kept is a copy elsewhere: it outlives the visitor."""
    files = Files(tmp_path / "page", keep=tmp_path / "mine")
    folders = [files.new("a") for _ in range(KEPT + 2)]
    for number, folder in enumerate(folders[-KEPT:]):
        (folder / "a.mp4").write_text(str(number))
        files.save(folder)
    files.drop("a")
    assert not list((tmp_path / "page").iterdir())
    kept = sorted(file.read_text() for file in (tmp_path / "mine").glob("*/a.mp4"))
    assert kept == [str(number) for number in range(KEPT)]
    Files(tmp_path / "page").save(tmp_path)
    assert len(list((tmp_path / "mine").iterdir())) == KEPT


def test_a_copy_that_fails_is_told_and_costs_nothing(tmp_path, caplog):
    """The visitor keeps the video, and no half of it stays."""
    (tmp_path / "taken").write_text("a file where the folder should be")
    files = Files(tmp_path / "page", keep=tmp_path / "taken")
    folder = files.new("me")
    (folder / "video.mp4").write_bytes(b"x")
    files.save(folder)
    assert (folder / "video.mp4").exists() and "no copy" in caplog.text


def test_bars_are_as_long_as_their_values():
    drawn = chart.bars("time", [("dense", 8.0, "8 s"), ("a < b", 2.0, "2 s")])
    long, short = (float(x) for x in re.findall(r'<rect[^>]* width="([\d.]+)"', drawn))
    assert long == pytest.approx(4 * short) and "a &lt; b" in drawn
    assert 'aria-label="time: dense 8 s, a &lt; b 2 s"' in drawn
    assert "nan" not in chart.bars("time", [("dense", 0.0, "0 s")])


def test_a_line_goes_up_with_its_values():
    drawn = chart.line("density", [1.0, 0.5, 0.25], "step")
    points = re.search(r'points="([^"]+)"', drawn)[1].split()
    (_, first), (_, middle), (_, last) = (map(float, point.split(",")) for point in points)
    assert first < middle < last and (middle - first) == pytest.approx(2 * (last - middle), abs=0.2)
    assert "100%, 50%, 25%" in drawn
    assert "polyline" in chart.line("density", [0.5], "step")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--port", "0"], "--port 0 must be from 1 to 65535"),
        (["--auth", "me"], "--auth must be USER:PASSWORD"),
        (["--limit", "0"], "--limit 0 must be above 0"),
        (["--limit", "nan"], "--limit nan must be above 0"),
        (["--model", "none at all"], "no such folder"),
        (["--device", "tpu"], "--device tpu is not known"),
        (["--out", __file__], "is a file"),
        (["--host", "999.1.1.1"], "--host 999.1.1.1 cannot be listened on"),
    ],
)
def test_wrong_arguments(words, says):
    result = CliRunner().invoke(cli.app, ["demo", *words])
    assert result.exit_code == 2 and says in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_the_command_asks_for(monkeypatch, tmp_path):
    """Its options reach the page; the folder for copies is not the one that is given away."""
    pytest.importorskip("gradio", reason="no gradio: pip install -e '.[test]'")
    asked = []

    def serve(settings, scratch, **options):
        asked.append((settings, options))
        raise KeyboardInterrupt

    monkeypatch.setattr("dit_sparse.demos.app.serve", serve)
    kept = tmp_path / "kept"
    words = ["--out", str(kept), "--limit", "30", "--auth", "me:a:b", "--device", "cpu"]
    CliRunner().invoke(cli.app, ["demo", *words])
    CliRunner().invoke(cli.app, ["demo"])
    (settings, options), (plain, _) = asked
    assert (settings.keep, settings.limit, options["auth"]) == (kept, 30, ("me", "a:b"))
    assert kept not in (settings.out, *settings.out.parents)
    assert plain.keep is None and 60 < plain.limit < 3600


def test_without_gradio(monkeypatch):
    """One line that names the extra."""
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    result = CliRunner().invoke(cli.app, ["demo"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert 'pip install "dit-sparse[demo]"' in result.stderr
