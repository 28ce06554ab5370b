"""`dit-sparse eval` as a whole on a tiny pipeline: what it writes, reads and refuses."""

import json
from pathlib import Path

import pytest

from dit_sparse.commands import evaluation
from dit_sparse.commands.sampling import sample
from dit_sparse.errors import ArgumentError
from dit_sparse.quality import cases, table
from dit_sparse.quality.cases import Case, read
from dit_sparse.quality.results import Result
from dit_sparse.quality.store import Store
from dit_sparse.schedule import Schedule
from tests.test_cli import check, run
from tests.tiny_wan import save


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"))


def test_command(model, tmp_path, monkeypatch):
    """Files, their agreement, a second run that generates nothing, and --show."""
    (tmp_path / "p.txt").write_text("a red circle moves right\n\n# not this\na blue square\n")
    args = ("eval", "--model", model, "--out", tmp_path / "e", "--method", "draft", "--keep", ".3",
            "--set", "patch=[4, 4]", "--set", "dense_steps=0", "--case", "pisa keep=.5 order=0",
            "--prompts", tmp_path / "p.txt", "--steps", 2, "--frames", 5, "--probes", 1,
            "--videos")  # fmt: skip
    first = run(*args, "--json")
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert told == json.loads((tmp_path / "e" / "eval.json").read_text())
    labels = [row["label"] for row in told["rows"]]
    assert labels == ["dense", "draft patch=[4,4] dense_steps=0 keep=0.3", "pisa keep=0.5 order=0"]
    assert [v["prompt"] for v in told["videos"]] == ["a red circle moves right", "a blue square"]
    text = (tmp_path / "e" / "eval.md").read_text()
    assert all(f"| {label} |" in text for label in labels[1:])
    assert (tmp_path / "e" / "eval.png").stat().st_size > 5000
    kept = sorted(p.relative_to(tmp_path / "e") for p in (tmp_path / "e").rglob("*.mp4"))
    assert len(kept) == 6 and kept[0] == Path("videos/dense/a-blue-square-1.mp4")
    monkeypatch.setattr(evaluation, "sample", None)
    again = run(*args, "--markdown")
    assert again.exit_code == 0 and again.stdout == text, again.output
    assert run("eval", "--show", tmp_path / "e" / "eval.json", "--markdown").stdout == text


def test_stopped_in_the_middle(model, tmp_path, monkeypatch):
    """Ctrl-C: exit code 130, and what was measured is on file and in the tables."""
    calls = iter(range(100))

    def interrupted(*args):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return sample(*args)

    monkeypatch.setattr(evaluation, "sample", interrupted)
    args = ("--method", "pisa", "--keep", ".5", "--prompt", "a red circle", "--steps", 1)
    stopped = run("eval", "--model", model, "--out", tmp_path, *args, "--frames", 1, "--seeds", 9)
    lines = stopped.stderr.splitlines()
    assert stopped.exit_code == 130 and lines[-1] == "stopped" and "run again" in lines[-2], lines
    assert not stopped.stdout and "Traceback" not in stopped.stderr
    result = Result.load(tmp_path / "eval.json")
    assert len(result.videos) == 1 and len(result.sparse[0].values["psnr"]) == 1
    # warm-ups and looks are no videos; the second dense one was not lost
    assert len(Store(tmp_path / "runs.jsonl").records) == 4


REFUSED = [
    (["--method", "piza"], ["piza", "pisa"]),
    (["--method", "dense"], ["dense", "keep"]),
    (["--keep", "0"], ["--keep 0", "above 0"]),
    (["--keep", ".5", "--density", ".5"], ["--keep", "--density"]),
    (["--set", "order=1"], ["--set", "--method"]),
    (["--method", "pisa", "--set", "keep=.5"], ["--set keep", "--keep"]),
    (["--method", "pisa", "--set", "order=7"], ["order=7"]),
    (["--method", "pisa,pisa"], ["two cases", "pisa"]),
    (["--case", "pisa 'order=1"], ["--case"]),
    (["--case", ""], ["--case ''", "names no method"]),
    (["--case", "pisa order"], ["--case 'pisa order': 'order' must be KEY=VALUE, e.g. dense"]),
    (["--case", "piza order=1"], ["--case 'piza order=1': piza is not known; nearest: pisa"]),
    (["--case", "pisa kep=1"], ["--case 'pisa kep=1': kep: method pisa takes keep=0.125"]),
    (["--case", "pisa order=7"], ["--case 'pisa order=7': order=7 must be"]),
    (["--cases", "none.toml"], ["--cases none.toml"]),
    (["--profile", "nobody"], ["nobody"]),
    (["--dense-steps", "-1"], ["--dense-steps -1", "a share"]),
    (["--dense-steps", "nan"], ["--dense-steps nan"]),
    (["--dense-steps", "1.5"], ["--dense-steps 1.5"]),
    (["--prompts", "none.txt"], ["--prompts none.txt"]),
    (["--prompts", "x.txt", "--prompt", "a"], ["--prompt", "--prompts"]),
    (["--prompt", " "], ["--prompt is empty"]),
    (["--count", "0"], ["--count 0"]),
    (["--seeds", "0"], ["--seeds 0"]),
    (["--probes", "-1"], ["--probes -1"]),
    (["--seconds", "0"], ["--seconds 0"]),
    (["--model", "none"], ["--model none"]),
    (["--frames", "18"], ["--frames 18", "17"]),
    (["--out", "/dev/null"], ["--out /dev/null", "folder"]),
    (["--out", "/dev/null/e"], ["--out /dev/null/e", "/dev/null is a file"]),
    (["--show", "none.json"], ["--show none.json"]),
]


@pytest.mark.parametrize(("args", "words"), REFUSED, ids=str)
def test_refused(args, words, monkeypatch):
    monkeypatch.setattr(evaluation, "loaded", None)
    check(run("eval", *args), 2, words)


BAD_FILES = {
    "[[case]]\n": "case 1 must name its method",
    "x = 1\n": "'x' is not known",
    "case = 3\n": r"write \[\[case\]\]",
    '[[case]]\nmethod = "pisa"\nparms = 1\n': "'parms' is not known",
    '[[case]]\nmethod = "pisa"\nremainder = "all"\n': "remainder='all'",
    '[[case]]\nmethod = "pisa"\n[[case]]\nmethod = "pisa"\n': "two cases are called 'pisa'",
    '[[case]]\nmethod = "pisa"\nlabel = "dense"\n': "a case is called 'dense'",
    '[[case]]\nmethod = "minference"\nremainder = "drop"\n': "remainder='drop' needs .* Stripes",
    '[[case]]\nmethod = "vmoba"\nremainder = "centroid"\n': "remainder='centroid' needs blocks",
    '[[case]]\nmethod = "pisa"\n[[claim]]\nsays = "a"\nbetter = "pisa"\nother = "b"\n': "claim 1",
    "": "holds no",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_case_files(text, tmp_path):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ArgumentError, match=BAD_FILES[text]):
        read(tmp_path / "c.toml")


def test_a_remainder_is_all_that_changes():
    own, made = (Case("a", "vmoba", remainder=kind).build().compute for kind in ("", "drop"))
    assert own.per_token and made == own


def test_dense_steps_leave_dense_layers(monkeypatch):
    """--dense-steps is one field of each case's schedule."""
    seen = []
    monkeypatch.setattr(cases, "check_labels", seen.extend)
    monkeypatch.setattr(evaluation, "loaded", None)
    run("eval", "--method", "svg", "--keep", ".5", "--dense-steps", "3")
    assert [case.schedule for case in seen] == [Schedule(dense_steps=3, dense_layers=1)]


def test_docs_hold_the_table_of_their_results():
    """docs/methods.md is what its command prints, and its cases can be built."""
    docs = Path(__file__).resolve().parent.parent / "docs"
    result = Result.load(docs / "measurements" / "h200-shapes-methods.json")
    text = (docs / "methods.md").read_text()
    for target in table.targets(result):
        for row in table.rows(result, target)[1]:
            assert f"| {' | '.join(row)} |" in text
    for row in table.claims(result)[1]:
        assert f"| {' | '.join(row)} |" in text
    listed, claims = read(docs / "measurements" / "shapes-methods.toml")
    assert {case.label for case in listed} == {row.series for row in result.sparse}
    assert claims == result.claims
