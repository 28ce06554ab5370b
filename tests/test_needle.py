"""The language model `needle`: its texts, its files, its answers."""

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dit_sparse import haystack
from dit_sparse.arrange.raster import Raster
from dit_sparse.commands.lm_model import folder
from dit_sparse.core import QKV, Context
from dit_sparse.errors import ArgumentError
from dit_sparse.haystack import ID, TASKS, Counts, prompts, texts, words
from dit_sparse.integrations import transformers as host
from dit_sparse.quality.answers import generate, tail_logits
from dit_sparse.quality.needle import ASKED, TAIL, Result, Row, answered
from dit_sparse.quality.needle_cases import GATE
from dit_sparse.score.seer import SeerGate

TRAIN = Path(__file__).resolve().parent.parent / "demos" / "train_needle"


def draw(batch=3, length=1024, asked=None, seed=0):
    counts = Counts.usual(length, ASKED if asked is None else asked)
    return texts(batch, length, counts, torch.Generator().manual_seed(seed))


def sentences(tokens):
    return [s.split() for s in words(tokens).removeprefix("<s> ").split(" .") if s.strip()]


def look_up(said):
    """Answer the questions of a text word by word; return the wanted and the given answers."""
    hidden = [s for s in said if s[0] != "question"]
    codes = {s[2]: s[3] for s in hidden if s[0] == "code"}
    legs = {s[2]: s[3] for s in hidden if s[0] == "road"}
    key = next(s[4:] for s in hidden if s[:2] == ["the", "pass"])
    wanted, given = [], []
    for asked in (s[2:] for s in said if s[0] == "question"):
        if asked[0] == "code":
            wanted.append([codes[asked[2]]])
            given.append(asked[3:])
        elif asked[0] == "road":
            way = [asked[2]]
            while way[-1] in legs:
                way.append(legs[way[-1]])
            wanted.append(way[1:])
            given.append(asked[3:])
        else:
            wanted.append(key)
            given.append(asked[4:])
    return wanted, given


@pytest.mark.parametrize("length", [300, 1024, 4097])
def test_answers_follow_from_the_text(length):
    found = draw(4, length)
    assert found.tokens.shape == found.sought.shape == (4, length)
    for tokens, sought in zip(found.tokens, found.sought, strict=True):
        wanted, given = look_up(sentences(tokens))
        assert wanted == given and len(wanted) == sum(ASKED.values())
        assert words(tokens[sought > 0]).split() == [w for answer in given for w in answer]
        plain = words(tokens[sought == 0])
        assert not {"code", "road", "pass", "question", "<s>"} & set(plain.split())
        assert tokens[0] == ID["<s>"] and words(tokens[-1:]) == "."


def test_same_seed_same_text():
    assert torch.equal(draw(seed=1).tokens, draw(seed=1).tokens)
    assert not torch.equal(draw(seed=1).tokens, draw(seed=2).tokens)


@pytest.mark.parametrize("task", TASKS)
def test_prompts_end_where_the_answer_begins(task):
    asked, answers, size = prompts(3, 700, task, 5)
    assert asked.shape == (3, 700) and words(asked[0, -size:]).startswith("question :")
    for prompt, answer in zip(asked, answers, strict=True):
        wanted, given = look_up(sentences(torch.cat((prompt, answer))))
        assert wanted == given and given[-1] == words(answer).split()


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda: draw(length=100, asked={"recall": 1}), "too short"),
        (lambda: draw(asked={"recall": 99}), "99 of recall"),
        (lambda: prompts(1, 700, "riddle", 0), "recall, passkey, roads"),
    ],
)
def test_what_cannot_be_drawn(call, told):
    with pytest.raises(ArgumentError, match=told):
        call()


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32).eval()


def test_files(model):
    """Stock classes, a tokenizer that inverts `words`, no more than 16 MB."""
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(p.stat().st_size for p in folder().iterdir()) < 16e6
    tokenizer = AutoTokenizer.from_pretrained(folder())
    tokens = draw().tokens[0]
    text = words(tokens[1:])
    assert tokenizer(text).input_ids == tokens.tolist()
    assert tokenizer(text.replace(" .", ".")).input_ids == tokens.tolist()
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert tokenizer.get_vocab() == ID and len(ID) <= model.config.vocab_size


def test_accuracy_at_4096_tokens(model):
    """At least 98 % of the looked-up tokens: the gate of the training, on other texts."""
    found = draw(3, 4096, seed=123)
    picked = tail_logits(model, found.tokens, TAIL, False).argmax(-1)
    sought = found.sought[:, -TAIL:] > 0
    assert (picked == found.tokens[:, -TAIL:])[sought].double().mean() >= 0.98
    right = answered(found, [p[s].tolist() for p, s in zip(picked, sought, strict=True)])
    assert set(right) == set(TASKS) and min(right.values()) >= 0.8


def test_decoding_reads_what_a_prefill_reads(model):
    tokens = draw(2, 700).tokens
    whole, steps = (tail_logits(model, tokens, 100, late) for late in (False, True))
    # sums of at most 700 terms in another order, in float32
    assert (whole - steps).abs().max() < 700 * 2**-23 * whole.abs().max()


@pytest.mark.parametrize("task", TASKS)
def test_greedy_says_what_was_picked(model, task):
    """All tokens of an answer found, given those before it: then generation gives the answer."""
    asked, answers, _ = prompts(2, 512, task, 9)
    said = generate(model, asked, answers.shape[1] + 5, (ID["."],))
    picked = tail_logits(model, torch.cat((asked, answers), 1), answers.shape[1], False).argmax(-1)
    right = (picked == answers).all(1)
    assert right.any()
    for number in right.nonzero()[:, 0]:
        assert torch.equal(said.tokens[number, : answers.shape[1]], answers[number])
        assert said.tokens[number, answers.shape[1]] == ID["."]


def test_a_wrong_token_makes_an_answer_wrong():
    found = draw(2)
    picked = [t[s > 0].tolist() for t, s in zip(found.tokens, found.sought, strict=True)]
    assert answered(found, picked) == dict.fromkeys(TASKS, 1.0)
    place = found.sought[1][found.sought[1] > 0].tolist().index(3)
    picked[1][place + 2] = ID["."]
    assert answered(found, picked) == {"recall": 1.0, "passkey": 1.0, "roads": 0.75}


def training(name):
    """Return a file of the training as a module."""
    spec = importlib.util.spec_from_file_location(f"needle_{name}", TRAIN / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_training_computes_what_transformers_computes(model):
    tokens = draw(2, 300).tokens
    with torch.no_grad():
        theirs = model(tokens, use_cache=False).logits
        ours = training("model").logits(dict(model.named_parameters()), model.config, tokens)
    assert (ours - theirs).abs().max() < 300 * 2**-23 * theirs.abs().max()


def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """With the average of the weights; on a trained model it says how good that is, and ends."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    train = training("train")
    monkeypatch.setattr(train, "LADDER", ((256, (8, 1), (6, 1, 1)),))
    options = Namespace(
        device="cpu", minutes=9.0, lr=2e-3, optimizer="adamw", scale=0.01, eager=True, stages=1,
        work=tmp_path, export=None,
    )  # fmt: skip
    first, again = train.Trainer(options), train.Trainer(options)
    for _ in range(3):
        first.update(0)
    first.save(1)
    assert again.run() == pytest.approx(first.look(0)["all"])
    assert again.average.steps == 3
    for name, value in first.average.state().items():
        assert torch.equal(value, again.average.state()[name])
    pairs = zip(again.average.source, again.average.values, strict=True)
    assert any((weight != mean).any() for weight, mean in pairs)


def test_the_gate_is_trained_as_the_method_computes_it(model, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    gate = training("gate")
    weights = gate.start(model.config, "cpu")[0]
    weights = {
        name: t.detach() + 0.1 * torch.randn_like(t).clamp(max=0) for name, t in weights.items()
    }
    x = QKV(torch.randn(1, 4, 300, 64), *torch.randn(2, 1, 2, 300, 64))
    rows, cols, goal = gate.shown(x, weights["inv_freq"])
    ctx = Context(causal=True, weights=weights)
    theirs = SeerGate()(x, Raster(gate.BLOCK)(x, ctx), ctx)
    # float32 sums of at most 300 terms, and angles of positions up to 300
    assert (gate.gate(rows, cols, weights).exp() - theirs).abs().max() < 300 * 2**-23 * 10
    assert torch.allclose(goal.sum(-1), torch.ones(()))


def test_the_trained_gate_knows_more_than_block_means(model):
    """At the same share of blocks kept, the trained gate loses fewer looked-up tokens."""
    found = draw(2, 1024, seed=77)
    sought, right = found.sought[:, -TAIL:] > 0, []
    for weights in ("", str(folder() / GATE)):
        host.enable(model, "seer", ratio=0.5, weights=weights)
        picked = tail_logits(model, found.tokens, TAIL, False).argmax(-1)
        host.disable(model)
        right.append((picked == found.tokens[:, -TAIL:])[sought].double().mean())
    assert right[1] > right[0]


def test_words_are_different():
    assert len(set(haystack.VOCABULARY)) == len(haystack.VOCABULARY) == len(ID)


def test_a_result_can_be_read_again():
    result = Result({"model": "m"}, {}, [512], 1, [Row("dense", "dense", {}, "")])
    assert Result.of(result.to_dict()) == result
