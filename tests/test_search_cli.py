"""`dit-sparse search`: what it writes for a tiny model is a profile, and what it refuses."""

import json

import pytest

from dit_sparse import Profile
from dit_sparse.commands import searching
from tests.test_cli import check, run
from tests.tiny_wan import save


def test_command(tmp_path):
    model = save(tmp_path / "model")
    args = ("search", "--model", model, "--prompt", "a red circle", "--steps", 1, "--frames", 1,
            "--parts", 1, "--alike", "--candidate", "sparse_vdit table=D block=16 diagonal=.4",
            "--budget-error", 5, "--out", tmp_path / "p.toml")  # fmt: skip
    first = run(*args, "--json")
    assert first.exit_code == 0, first.output
    told, profile = json.loads(first.stdout), Profile.load(tmp_path / "p.toml")
    assert profile.method == "mixed" and not profile.is_draft and profile.build()
    assert profile.measured["prompts"] == ["a red circle"] and told["error"] <= 5
    assert len(profile.params["table"]) == 2 and {len(r) for r in profile.params["table"]} == {2}
    learned = json.loads((tmp_path / "p.json").read_text())
    assert len(learned["candidates"]) == len(learned["seconds"]) == 2
    made = run("generate", "a red circle", "--model", model, "--profile", tmp_path / "p.toml",
               "--steps", 1, "--frames", 1, "--out", tmp_path / "v.png", "--quiet")  # fmt: skip
    assert made.exit_code == 0 and (tmp_path / "v.png").is_file(), made.output


def test_a_default_name_replaces_nothing(tmp_path, monkeypatch):
    """A profile of another search stays; the same search again has nothing to write anew."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "model")
    (tmp_path / "model--mixed.toml").write_text("mine")
    (tmp_path / "model--mixed-2.json").write_text("mine")
    args = ("search", "--model", "model", "--prompt", "a red circle", "--steps", 1, "--frames", 1,
            "--parts", 1, "--alike", "--candidate", "sparse_vdit table=S", "--quiet")  # fmt: skip
    names = [run(*args).stdout.split() for _ in range(2)]
    assert names == [["model--mixed-3.toml", "model--mixed-3.json"]] * 2
    assert (tmp_path / "model--mixed.toml").read_text() == "mine"
    assert not (tmp_path / "model--mixed-2.toml").exists()
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["model--mixed.jsonl"]


REFUSED = [
    (["--budget-error", "0"], ["--budget-error 0", "above 0"]),
    (["--speedup", "1"], ["--speedup 1", "above 1"]),
    (["--budget-error", ".1", "--speedup", "2"], ["--budget-error", "--speedup"]),
    (["--rule", "papr"], ["--rule papr", "paper"]),
    (["--rule", "paper", "--budget-psnr", "30"], ["--budget-psnr", "--rule paper"]),
    (["--rule", "paper", "--candidate", "pisa"], ["--candidate"]),
    (["--eps", "1"], ["--eps", "--rule best"]),
    (["--rule", "paper", "--eps", "-1"], ["--eps -1"]),
    (["--candidate", ""], ["--candidate ''", "METHOD KEY=VALUE"]),
    (["--candidate", "piza"], ["--candidate 'piza'", "nearest: pisa"]),
    (
        ["--candidate", "svg", "--candidate", "pisa keep=9"],
        ["--candidate 'pisa keep=9'", "at most"],
    ),
    (["--candidate", "pisa keep"], ["--candidate 'pisa keep': write METHOD KEY=VALUE"]),
    (["--parts", "0"], ["--parts 0"]),
    (["--checks", "0"], ["--checks 0"]),
    (["--out", "x.json"], ["--out x.json", ".toml"]),
    (["--prompt", " "], ["--prompt is empty"]),
    (["--model", "none"], ["--model none"]),
]


@pytest.mark.parametrize(("args", "words"), REFUSED, ids=str)
def test_refused(args, words, monkeypatch):
    monkeypatch.setattr(searching, "loaded", None)
    check(run("search", *args), 2, words)
