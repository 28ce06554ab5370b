"""`dit-sparse eval --task needle`: what it measures, keeps on file and reads again."""

import json

from dit_sparse.quality import needle
from tests.test_cli import run
from tests.test_lm_cli import EVAL


def test_evaluation(tmp_path, monkeypatch):
    """Files, their agreement, a second run that computes nothing, more cases, and --show."""
    args = (*EVAL, "--out", tmp_path, "--case", "xattention tau=.5", "--case", "block_topk pages=4")
    first = run(*args, "--json")
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert told == json.loads((tmp_path / "eval.json").read_text())
    dense, sparse, late = told["rows"]
    assert [r["label"] for r in told["rows"]] == [
        "dense",
        "xattention tau=0.5",
        "block_topk pages=4",
    ]
    assert dense["cells"][0]["right"] == {"recall": 1.0, "passkey": 1.0, "roads": 1.0}
    assert 0 < sparse["cells"][0]["density"] < 1 and late["cells"][0]["density"] < 0.3
    assert sparse["phase"] == "prefill" and late["phase"] == "decode"
    text = (tmp_path / "eval.md").read_text()
    assert "### 512 tokens" in text and all(f"| {r['label']} |" in text for r in told["rows"])
    monkeypatch.setattr(needle, "tail_logits", None)
    assert run(*args, "--markdown").stdout == text
    assert (
        run("eval", "--task", "needle", "--show", tmp_path / "eval.json", "--markdown").stdout
        == text
    )


def test_one_case_that_fails_costs_no_other(tmp_path, monkeypatch):
    true = needle.tail_logits

    def failing(model, tokens, tail, decoding):
        if decoding:
            raise RuntimeError("out of memory")
        return true(model, tokens, tail, decoding)

    monkeypatch.setattr(needle, "tail_logits", failing)
    found = run(*EVAL, "--out", tmp_path, "--case", "block_topk pages=4", "--case", "moba topk=2",
                "--markdown")  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "block_topk pages=4: not measured: out of memory" in found.stdout
    assert "| moba topk=2 | 0." in found.stdout


def test_stopped_in_the_middle(tmp_path, monkeypatch):
    true, calls = needle.tail_logits, iter(range(9))

    def interrupted(*args):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return true(*args)

    monkeypatch.setattr(needle, "tail_logits", interrupted)
    stopped = run(*EVAL, "--out", tmp_path, "--method", "moba")
    assert stopped.exit_code == 130 and "run again" in stopped.stderr, stopped.output
    rows = json.loads((tmp_path / "eval.json").read_text())["rows"]
    assert [len(row["cells"]) for row in rows] == [1, 1, 0, 0]


def test_more_texts_are_those_there_and_some(tmp_path, monkeypatch):
    """What is on file is read again as long as it is of the same texts, and only then."""
    true, seen = needle.tail_logits, []

    def watched(model, tokens, *args):
        seen.extend(tokens.tolist())
        return true(model, tokens, *args)

    monkeypatch.setattr(needle, "tail_logits", watched)
    args = ["eval", "--task", "needle", "--length", 512, "--out", tmp_path, "--method", "moba",
            "--set", "topk=2", "--json"]  # fmt: skip
    one, two = (json.loads(run(*args, "--count", n).stdout) for n in (1, 2))
    assert [row["cells"][0]["texts"] for row in one["rows"] + two["rows"]] == [1, 1, 2, 2]
    dense, sparse = seen[::2], seen[1::2]
    assert dense == sparse and len(dense) == 2 and dense[0] != dense[1]
    # a parameter at its default is the same, written out or not
    (tmp_path / "cases.toml").write_text(
        '[[case]]\nlabel = "m"\nmethod = "moba"\nparams.topk = 2\n'
    )
    run(*args[:7], "--cases", tmp_path / "cases.toml", "--count", 2)
    assert len(seen) == 4
    # another generator of texts makes others, which nobody has read yet
    drawn = needle.texts
    monkeypatch.setattr(needle, "texts", lambda n, length, counts, generator: drawn(
        n, length, counts, generator.manual_seed(5)))  # fmt: skip
    run(*args, "--count", 1)
    assert len(seen) == 6 and seen[4] not in dense
