"""`dit-sparse bench` on a command line: files, tables, and what it refuses."""

import inspect
import json
from dataclasses import fields

import pytest

from dit_sparse.bench import kernel, plot
from dit_sparse.commands.options import given
from dit_sparse.commands.timing import Run
from tests.test_bench import nan
from tests.test_cli import check, run

KERNEL = ("bench", "kernel", "--quick", "--heads", "1", "--head-dim", "16", "--density", ".3")
METHOD = ("bench", "method", "--quick", "--grid", "3x8x8", "--heads", "1", "--head-dim", "16")


def test_command(tmp_path):
    """Files are whole and alone in their folder; the table and the JSON tell the same."""
    out, picture = tmp_path / "k.json", tmp_path / "k.svg"
    files = ("--out", out, "--plot", picture)
    shown = run(*KERNEL, "--tokens", "256..1k", "--alone", "--markdown", *files)
    assert shown.exit_code == 0, shown.output
    told = json.loads(out.read_text())
    timed = [row for row in told["rows"] if "ms" in row]
    assert len(shown.stdout.strip().splitlines()) == len(timed) + 2 == 8
    assert told["kernel"]["implementation"] == "torch" and told["limits"]["tflops"] > 0
    assert {e["series"] for e in told["exponents"]} == {"flash", "ours (torch) block 128x128"}
    assert {row["why"] for row in told["rows"] if "why" in row} == {"needs a CUDA device"}
    assert picture.read_text().rstrip().endswith("</svg>")
    assert sorted(tmp_path.iterdir()) == [out, picture]
    # a finished run can be shown again in any form
    again = run("bench", "show", out, "--json", "--plot", tmp_path / "again.svg")
    assert json.loads(again.stdout) == told and (tmp_path / "again.svg").stat().st_size > 5000
    assert run("bench", "show", out, "--markdown").stdout == shown.stdout


def test_command_method(tmp_path):
    picture = ("--plot", tmp_path / "m.svg")
    shown = run(*METHOD, "--method", "draft", "--set", "patch=[4, 4]", "--json", *picture)
    assert picture[1].is_file()
    row = json.loads(shown.stdout)["rows"][-1]
    assert row["settings"] == {"keep": 0.1, "patch": [4, 4]} and row["over_kept"] > 0


def test_cases():
    """Methods by name and with settings of their own, which may hold the budget."""
    cases = ("--case", "draft patch=[4,4]", "--case", "draft patch=[2,4] keep=.5")
    shown = run(*METHOD, "--keep", ".3", "--method", "svg", *cases, "--json")
    settings = [row.get("settings") for row in json.loads(shown.stdout)["rows"][-3:]]
    assert settings == [
        {"keep": 0.3}, {"keep": 0.3, "patch": [4, 4]}, {"keep": 0.5, "patch": [2, 4]}
    ]  # fmt: skip


def test_wrong_output_fails_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel, "block_sparse_attention", nan)
    shown = run(*KERNEL, "--tokens", "256", "--out", tmp_path / "k.json")
    assert shown.exit_code == 1 and "wrong output" in shown.stderr.splitlines()[-1]
    # what was found is on file
    assert json.loads((tmp_path / "k.json").read_text())["rows"][-3]["wrong"]


def test_no_memory(monkeypatch):
    monkeypatch.setattr(kernel, "free_bytes", lambda device: 1 << 20)
    check(run(*KERNEL, "--tokens", "4k", "--quiet"), 1, ["nothing was timed", "GiB are free"])


def test_no_matplotlib(monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    check(run(*KERNEL, "--plot", "a.png"), 2, ["matplotlib", "dit-sparse[plot]"])


REFUSED = [
    ([*KERNEL, "--density", "0"], ["--density 0", "above 0"]),
    ([*KERNEL, "--density", ".5,1.5"], ["--density .5,1.5", "at most 1"]),
    ([*KERNEL, "--density", "few"], ["--density few", "no number"]),
    ([*KERNEL, "--tokens", "32m"], ["--tokens 32m", "8k..256k"]),
    ([*KERNEL, "--tokens", "8k..4k"], ["--tokens 8k..4k"]),
    ([*KERNEL, "--shape", "A"], ["--shape A", "own size"]),
    ([*KERNEL, "--spread", ".5"], ["--spread .5"]),
    ([*KERNEL, "--block-q", "8"], ["--block-q 8", "16"]),
    ([*KERNEL, "--block-kv", "128,8"], ["--block-kv 128,8", "above 15"]),
    ([*KERNEL, "--block-kv", "64.5"], ["--block-kv 64.5", "whole number"]),
    ([*KERNEL, "--form", "round"], ["--form round", "clusters"]),
    (["bench", "show", __file__], ["test_bench_cli.py", "no result"]),
    (["bench", "show", "none.json"], ["none.json", "no result"]),
    ([*KERNEL, "--seconds", "0"], ["--seconds 0"]),
    ([*KERNEL, "--impl", "cuda"], ["--impl cuda", "triton"]),
    ([*KERNEL, "--dtype", "int8"], ["--dtype int8", "bfloat16"]),
    ([*KERNEL, "--device", "tpu"], ["--device tpu", "cuda"]),
    ([*KERNEL, "--out", "a.txt"], ["--out a.txt", ".json"]),
    ([*KERNEL, "--out", "/none/a.json"], ["--out", "/none"]),
    ([*KERNEL, "--plot", "a.gif"], ["--plot a.gif", ".png"]),
    (["bench", "kernel", "--shape", "D"], ["--shape D", "A, B, C"]),
    (["bench", "kernel", "--heads", "0"], ["--heads 0"]),
    ([*METHOD, "--method", "piza"], ["--method piza", "pisa"]),
    ([*METHOD, "--method", "dense"], ["dense", "keep"]),
    ([*METHOD, "--keep", "2"], ["--keep 2", "at most 1"]),
    ([*METHOD, "--set", "order=1"], ["--set", "--method"]),
    ([*METHOD, "--method", "pisa", "--set", "order=7"], ["order=7"]),
    ([*METHOD, "--method", "pisa", "--set", "keep=.3"], ["--set keep", "--keep"]),
    ([*METHOD, "--case", "piza order=0"], ["--case 'piza order=0'", "pisa"]),
    ([*METHOD, "--case", "pisa order"], ["--case 'pisa order'", "KEY=VALUE"]),
    ([*METHOD, "--case", "pisa order=7"], ["order=7"]),
    ([*METHOD, "--case", " "], ["--case ' '", "names no method"]),
    ([*METHOD, "--case", "pisa", "--set", "order=1"], ["--set", "--method"]),
    (["bench", "method", "--grid", "3x8"], ["--grid 3x8", "21x30x52"]),
]


@pytest.mark.parametrize(("args", "words"), REFUSED, ids=str)
def test_refused(args, words, monkeypatch):
    monkeypatch.setattr("dit_sparse.bench.machine.measure_limits", None)
    check(run(*args), 2, words)


def test_commands_share_the_options_of_a_run():
    """Their own come first; what every run of a command is, is no option of it."""
    options = {name: run("bench", name, "--help").stdout for name in ("kernel", "method", "memory")}
    for name, shown in options.items():
        assert all(f"--{field.name}" in shown for field in fields(Run) if field.name != "quick")
        assert ("--quick" in shown) == (name != "memory")
    seen = []
    taken = given(lambda a=1, b=2: (a, b), b=5)(lambda first, own: seen.append((first, own)))
    assert list(inspect.signature(taken).parameters) == ["own", "a"]
    taken(own=7, a=3)
    assert seen == [((3, 5), 7)]
