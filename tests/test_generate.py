"""`dit-sparse generate` as a whole, on a tiny pipeline of real classes and random weights."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner

from dit_sparse.cli import app
from tests.tiny_wan import save

PROMPT = "a red circle moves right"
NAME = "a-red-circle-moves-right"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save(tmp_path_factory.mktemp("model")))


@pytest.fixture
def generate(model, tmp_path, monkeypatch):
    """Run the command in an empty folder; returns its result, which must be good."""
    monkeypatch.chdir(tmp_path)

    def call(*args, prompt=PROMPT):
        words = ["generate", prompt, "--model", model, *map(str, args)]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return call


def facts(path):
    """Return frames, height, width and frames per second of a video that plays to its end."""
    video, count = cv2.VideoCapture(str(path)), 0
    while video.read()[0]:
        count += 1
    keys = (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FPS)
    height, width, fps = (video.get(key) for key in keys)
    video.release()
    return count, height, width, fps


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_defaults_come_from_the_model(generate, tmp_path):
    result = generate()
    assert facts(tmp_path / f"{NAME}.mp4") == (9, 64, 64, 8)
    assert files(tmp_path) == [f"{NAME}.mp4"]
    # too few tokens for sparse attention to pay, and it says so
    assert all(word in result.stdout for word in ("dense", "192 tokens", "2,000", f"{NAME}.mp4"))
    assert "warning" not in result.stderr


def test_compare(generate, tmp_path):
    args = (
        "--compare",
        "--method",
        "pisa",
        "--keep",
        0.25,
        "--steps",
        2,
        "--guidance",
        2,
        "--json",
    )
    told = json.loads(generate(*args).stdout)
    assert files(tmp_path) == [f"{NAME}.mp4", f"{NAME}_compare.mp4"]
    assert facts(tmp_path / f"{NAME}.mp4") == (9, 64, 64, 8)
    count, height, width, fps = facts(tmp_path / f"{NAME}_compare.mp4")
    assert (count, fps) == (9, 8) and width > 2 * 320 and height > 320
    assert told["method"] == "pisa" and told["params"]["keep"] == 0.25 and told["steps"] == 2
    assert 0.2 < told["density"] < 0.5 and told["guidance"] == 2
    both = told["compare"]
    assert both["psnr"] > 5 and 0 < both["ssim"] < 1 and not both["identical"]
    assert told["out"] == f"{NAME}.mp4" and both["out"] == f"{NAME}_compare.mp4"
    assert both["speedup"] == pytest.approx(
        both["dense_seconds"]["denoise"] / told["seconds"]["denoise"], rel=0.01
    )
    # the second pair keeps its names together
    generate("--compare", "--keep", 1, "--steps", 1)
    assert files(tmp_path)[:2] == [f"{NAME}-2.mp4", f"{NAME}-2_compare.mp4"]


def test_compare_a_table_of_two_steps(generate):
    """The steps are not shortened for a method that serves one number of them."""
    table = 'table=[["DM", "DM"], ["DD", "MM"]]'
    args = ("--compare", "--method", "sparse_vdit", "--set", table, "--set", "dense_steps=0")
    told = json.loads(generate(*args, "--steps", 2, "--json").stdout)
    assert told["steps"] == 2 and told["density"] < 1


def test_keeping_all_equals_dense(generate):
    told = json.loads(generate("--compare", "--keep", 1, "--steps", 2, "--json").stdout)
    assert told["density"] == 1 and told["reason"] == "default method"
    both = told["compare"]
    assert both["identical"] == (both["psnr"] is None)
    assert both["identical"] or both["psnr"] > 60


def test_size_length_rate_and_format(generate, tmp_path):
    generate("--frames", 5, "--width", 96, "--fps", 12, "--steps", 1, "--out", "x.mp4")
    assert facts(tmp_path / "x.mp4") == (5, 64, 96, 12)
    generate("--frames", 1, "--steps", 1)
    assert cv2.imread(str(tmp_path / f"{NAME}.png")).shape == (64, 64, 3)
    for kind in ("gif", "webp"):
        generate("--frames", 5, "--steps", 1, "--out", f"x.{kind}")
        assert (tmp_path / f"x.{kind}").stat().st_size > 500


def test_names(generate, tmp_path):
    short = ("--frames", 1, "--steps", 1)
    generate(*short)
    before = (tmp_path / f"{NAME}.png").read_bytes()
    assert generate(*short, "--seed", 1, "--quiet").stdout.strip() == f"{NAME}-2.png"
    assert (tmp_path / f"{NAME}.png").read_bytes() == before
    # a named file is replaced; an existing folder is filled
    (tmp_path / "x.png").write_text("old")
    generate(*short, "--out", "x.png")
    assert (tmp_path / "x.png").read_bytes() == before
    (tmp_path / "folder").mkdir()
    generate(*short, "--out", "folder")
    assert files(tmp_path / "folder") == [f"{NAME}.png"]


def test_unknown_words_are_named(generate, tmp_path):
    result = generate("--frames", 1, "--steps", 1, prompt="a red circel / [b]cat[/b]\n" * 9)
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert len(lines) == 1 and "circel" in lines[0] and "circle" in lines[0]
    (name,) = files(tmp_path)
    assert len(name) < 70 and "\n" not in name


def test_profile_and_schedule(generate, tmp_path):
    (tmp_path / "p.toml").write_text(
        '[profile]\nmodel = "x"\nmethod = "draft"\n[params]\nkeep = 0.5\npatch = [4, 4]\n'
    )
    told = generate("--profile", "p.toml", "--set", "dense_layers=0", "--steps", 4, "--json")
    told = json.loads(told.stdout)
    assert told["params"]["keep"] == 0.5 and told["params"]["dense_layers"] == 0
    assert "draft" in told["reason"] and 0.5 < told["density"] < 1
    assert told["dense_calls"]


def test_failure_while_running(generate, model, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no luck\nat all")

    monkeypatch.setattr("diffusers.WanTransformer3DModel.forward", fail)
    result = CliRunner().invoke(app, ["generate", PROMPT, "--model", model])
    assert result.exit_code == 1 and not files(tmp_path)
    assert result.stderr.splitlines()[-1].endswith("RuntimeError: no luck at all")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle(number, code, model, tmp_path):
    root = str(Path(__file__).resolve().parent.parent)
    env = {**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"}
    args = [sys.executable, "-m", "dit_sparse.cli", "generate", PROMPT, "--model", model]
    with subprocess.Popen(
        [*args, "--steps", "100000"], cwd=tmp_path, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # where the tests run in the background, a shell has made them ignore interrupts
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stdout is not None
        assert process.stderr.readline().startswith("loading")
        assert process.stderr.readline().startswith("dense: step 1/100000")
        process.send_signal(number)
        lines, printed = process.stderr.read().splitlines(), process.stdout.read()
    assert process.returncode == code and lines[-1] == "stopped", lines
    assert not printed and "Traceback" not in "".join(lines) and not files(tmp_path)
