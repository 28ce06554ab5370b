"""`dit-sparse lm` and `dit-sparse eval --task needle` as a whole: what they say and refuse."""

import json

import pytest
import torch

from dit_sparse.quality.needle_cases import SWEEP, sweep
from dit_sparse.registry import methods
from tests.test_cli import check, run
from tests.tiny_text import build

TASK = ("lm", "--task", "recall", "--length", 600)
EVAL = ("eval", "--task", "needle", "--length", 512, "--count", 1)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    for name in ("empty", "video", "broken"):
        (root / name).mkdir()
    (root / "video" / "model_index.json").write_text("{}")
    (root / "broken" / "config.json").write_text("{")
    (root / "file").write_text("")
    return {path.name: path for path in root.iterdir()} | {"none": root / "none"}


def test_answer_and_comparison():
    found = run(*TASK, "--method", "xattention", "--set", "tau=0.8", "--compare", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["right"] and told["answer"] == told["wanted"] == told["compare"]["answer"]
    assert told["compare"]["agreement"] == 1 and told["prompt_tokens"] == 600
    assert 0 < told["density"] < 1 and told["params"]["tau"] == 0.8
    assert "decoding: the method is for prefill" in told["dense_calls"]
    assert told["seconds"]["prefill"] > 0 and told["prefill_tokens_per_second"] > 0


def test_a_decoding_method_decodes():
    found = run("lm", "--task", "roads", "--length", 600, "--method", "block_topk", "--json",
                "--set", "pages=8")  # fmt: skip
    told = json.loads(found.stdout)
    assert told["density"] < 0.5 and len(told["answer"].split()) >= 4
    assert told["decode_tokens_per_second"] > 0


def test_a_prompt_and_a_table():
    text = "code : Lavo davu . the old river paints slowly . question : code : Lavo"
    found = run("lm", text)
    assert found.exit_code == 0 and "davu" in found.stdout and "default" in found.stdout
    assert run("lm", text, "--quiet").stdout == "davu\n"
    piped = run("lm", "-", "--quiet", input=text.replace(" .", "."))
    assert piped.stdout == "davu\n", piped.output


def test_another_model(tmp_path):
    """A folder of any causal model; the words are its tokenizer's."""
    from dit_sparse.commands.lm_model import folder

    build(vocab_size=992).float().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder() / name).read_bytes())
    found = run("lm", "the old river", "--model", tmp_path, "--tokens", 3, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["new_tokens"] == 3


# arguments after `lm`, words that the line must hold
REFUSED = [
    ([], ["PROMPT", "--task"]),
    (["x", "--task", "recall"], ["PROMPT", "--task"]),
    (["  "], ["empty"]),
    (["x", "--length", 600], ["--length 600", "--task"]),
    (["--task", "riddle"], ["riddle", "recall, passkey, roads"]),
    (["--task", "recall", "--length", 20], ["--length 20", "256"]),
    (["--task", "recall", "--length", 99999], ["99999", "16512"]),
    (["x", "--tokens", 0], ["--tokens 0", "1"]),
    (["x", "--method", "xatention"], ["xatention", "nearest", "xattention"]),
    (["x", "--method", "xattention", "--keep", ".2"], ["xattention", "no keep", "tau"]),
    (["x", "--set", "tau=.5"], ["--set", "--method"]),
    (["river", "--method", "svg2"], ["svg2", "language model"]),
    (["x", "--device", "tpu"], ["tpu"]),
    (["x", "--model", "{none}"], ["none", "needle", "hub id"]),
    (["x", "--model", "{empty}"], ["empty", "config.json"]),
    (["x", "--model", "{video}"], ["video", "generate"]),
    (["x", "--model", "{broken}"], ["broken", "cannot be loaded"]),
    (["x", "--model", "{file}"], ["file", "folder"]),
    (["--task", "recall", "--model", "a/b"], ["a/b", "--task"]),
    (["the xyzzy river"], ["xyzzy", "--task recall"]),
    (["x", "--model", "shapes"], ["--model shapes", "videos", "`generate`"]),
]


@pytest.mark.parametrize("args, words", REFUSED)
def test_lm_refuses_in_one_line(args, words, places):
    check(run("lm", *(str(a).format(**places) for a in args)), 2, words)


def test_every_text_method_has_settings(tmp_path):
    """One that brings a phase and no settings here would be left out without a word."""
    import dit_sparse

    text = {name for name in methods() if dit_sparse.get(name).schedule.phase}
    assert set(SWEEP) == text
    cases = sweep(SWEEP, tmp_path)
    assert len({case.label for case in cases}) == len(cases)
    for case in cases:
        assert case.build().schedule.phase


WRONG = [
    (["--task", "riddle"], ["riddle", "needle"]),
    (["--task", "needle", "--model", "shapes"], ["--model shapes", "videos", "needle"]),
    (["--task", "needle", "--compile"], ["--compile", "videos"]),
    (["--task", "needle", "--frames", 5], ["--frames", "videos"]),
    (["--task", "needle", "--keep", ".5"], ["--keep", "videos"]),
    (["--task", "needle", "--dense-steps", 1], ["--dense-steps", "videos"]),
    (["--length", 512], ["--length 512", "--task needle"]),
    (["--task", "needle", "--length", "4k"], ["--length 4k", "numbers"]),
    (["--task", "needle", "--length", 100], ["--length 100", "512"]),
    (["--task", "needle", "--length", 65536, "--method", "moba"], ["65536", "16512"]),
    (["--task", "needle", "--count", 0], ["--count 0"]),
    (["--task", "needle", "--seconds", 0], ["--seconds 0"]),
    (["--task", "needle", "--method", "moab"], ["moab", "moba"]),
    (["--task", "needle", "--method", "pisa"], ["pisa", "--case"]),
    (["--task", "needle", "--case", "pisa"], ["pisa", "videos", "xattention"]),
    (["--task", "needle", "--case", "moba topk=x"], ["--case 'moba topk=x': topk=x"]),
    (["--task", "needle", "--case", "moab"], ["--case 'moab': moab", "moba"]),
    (["--task", "needle", "--set", "topk=4"], ["--set", "--method"]),
    (["--task", "needle", "--show", "{file}"], ["file", "no result"]),
    (["--task", "needle", "--out", "{file}"], ["file", "folder"]),
    (["--task", "needle", "--model", "{none}"], ["none", "hub id"]),
]


@pytest.mark.parametrize("args, words", WRONG)
def test_evaluation_refuses_in_one_line(args, words, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(run("eval", *(str(a).format(**places) for a in args)), 2, words)
    assert not list(tmp_path.iterdir())


def test_a_model_of_other_words(tmp_path):
    build(vocab_size=992).float().save_pretrained(tmp_path)
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="a").save_pretrained(tmp_path)
    found = run(*EVAL, "--model", tmp_path, "--out", tmp_path / "o", "--method", "moba")
    check(found, 2, ["other words"])


def test_times_are_of_the_whole_answer():
    """The clock stops behind the last token: decoding time and steps belong together."""
    from dit_sparse.quality.answers import generate

    found = generate(build().float(), torch.randint(2, 61, (2, 20)), 4)
    assert found.tokens.shape == (2, 4) and found.steps == 3
    assert found.prefill > 0 and found.decoding > 0 and found.rate > 0
