"""Many prompts, and several processes: `generate --prompts`, and `torchrun ... generate`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.test_cli import run
from tests.tiny_wan import save

PROMPTS = "a red circle moves right\n\na blue square\n"
AUTO = ["--steps", "2", "--frames", "5"]
SMALL = [*AUTO, "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save(tmp_path_factory.mktemp("model") / "wan"))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    return path


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_prompts_of_a_file(model, prompts, tmp_path):
    out = tmp_path / "new" / "out"
    given = ["generate", "--prompts", str(prompts), "--model", model, "--out", str(out), *SMALL]
    first = run(*given, "--quiet")
    assert first.exit_code == 0, first.stderr
    files = sorted(p.name for p in out.glob("*.mp4"))
    assert files == ["0000-a-red-circle-moves-right.mp4", "0002-a-blue-square.mp4"]
    assert [Path(line).name for line in first.stdout.split()] == files
    assert [line["status"] for line in manifest(out)] == ["done", "done"]
    # what is there is left alone, what is missing is made again
    (out / files[1]).unlink()
    before = (out / files[0]).stat().st_mtime_ns
    assert run(*given, "--quiet").exit_code == 0
    assert (out / files[0]).stat().st_mtime_ns == before and (out / files[1]).is_file()
    assert [line["number"] for line in manifest(out)] == [0, 2, 2]
    # other settings make other files, beside the old ones
    assert run(*given, "--seed", "1", "--quiet").exit_code == 0
    assert len(list(out.glob("*.mp4"))) == 4 and (out / files[0]).stat().st_mtime_ns == before


def test_a_manifest_that_was_cut_off_goes_on(model, prompts, tmp_path):
    """A crash in the middle of a line, and of a letter, costs that line alone."""
    given = ["generate", "--prompts", str(prompts), "--model", model, "--out", str(tmp_path)]
    assert run(*given, *SMALL, "--quiet").exit_code == 0
    whole = (tmp_path / "manifest.jsonl").read_bytes()
    (tmp_path / "manifest.jsonl").write_bytes(whole + '{"prompt": "é'.encode()[:-1])
    (tmp_path / "0002-a-blue-square.mp4").unlink()
    again = run(*given, *SMALL)
    assert again.exit_code == 0 and "1 of 2 prompts are done already" in again.stderr
    assert len((tmp_path / "manifest.jsonl").read_bytes().splitlines()) == 4
    # a setting that decides the result makes it new
    assert "done already" not in run(*given, *SMALL, "--guard", "0.5").stderr


def test_failed_prompts_are_passed_over(model, prompts, tmp_path, monkeypatch):
    from dit_sparse.commands import many
    from dit_sparse.commands.sampling import RunError

    def sample(pipe, arguments, *rest):
        if "blue" not in arguments["prompt"]:
            raise RunError("out of luck")
        return real(pipe, arguments, *rest)

    real = many.sample
    monkeypatch.setattr(many, "sample", sample)
    given = ["generate", "--prompts", str(prompts), "--model", model, "--out", str(tmp_path)]
    failed = run(*given, *SMALL)
    assert failed.exit_code == 1 and "1 of 2 prompts failed" in failed.stderr
    assert {line["status"]: line.get("error") for line in manifest(tmp_path)} == {
        "failed": "out of luck", "done": None,
    }  # fmt: skip
    assert len(list(tmp_path.glob("*.mp4"))) == 1


WRONG = [
    (["a prompt", "--prompts", "FILE"], "goes without a PROMPT"),
    (["--prompts", "missing.txt"], "cannot be read"),
    (["--prompts", "FILE", "--out", "FOLDER/x.mp4"], "must be a folder"),
    (["--prompts", "FILE", "--out", "FILE/x"], "is a file; name a folder"),
    (["--prompts", "FILE", "--out", "FOLDER", "--method", "piza"], "nearest: pisa"),
    (["--prompts", "FILE", "--out", "FOLDER", "--frames", "18"], "nearest: 17"),
    (["--prompts", "FILE", "--out", "FOLDER", "--method", "pisa", "--set", "a=1"], "--set a"),
    ([], "the prompt is empty"),
]


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_wrong_arguments(given, words, prompts, tmp_path):
    new = tmp_path / "new"
    given = [word.replace("FILE", str(prompts)).replace("FOLDER", str(new)) for word in given]
    found = run("generate", *given)
    assert found.exit_code == 2 and words in found.stderr and found.stderr.count("\n") == 1
    assert not new.exists()


def torchrun(ranks, *given):
    """Run the command line in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "-m", "dit_sparse.cli", *given]
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    plain |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, env=plain, capture_output=True, text=True, timeout=300)


def test_processes_share_a_generation(model, tmp_path):
    """Two processes make the video that one makes, and the first one alone writes it."""
    given = ["generate", "a red circle", "--model", model, "--method", "draft", "--keep", "0.5"]
    given += ["--set", "patch=[2,2]", "--steps", "2", "--frames", "1", "--device", "cpu", "--quiet"]
    alone, shared = tmp_path / "alone.png", tmp_path / "shared.png"
    assert run(*given, "--out", str(alone)).exit_code == 0
    found = torchrun(2, *given, "--out", str(shared))
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(shared)]
    one, two = (cv2.imread(str(path)).astype(np.float32) for path in (alone, shared))
    assert one.shape == two.shape and one.std() > 1 and np.abs(one - two).max() <= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.png", "shared.png"]


def test_processes_share_the_prompts(model, prompts, tmp_path):
    given = ["generate", "--prompts", str(prompts), "--model", model, "--out", str(tmp_path)]
    found = torchrun(2, *given, "--quiet", *AUTO)
    assert found.returncode == 0, found.stderr
    assert len(list(tmp_path.glob("*.mp4"))) == 2 and len(found.stdout.split()) == 2
    assert {line["number"] for line in manifest(tmp_path)} == {0, 2}
