"""From the arguments of `lm` to an answer, its times and what it has in common with dense."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_sparse.commands.attention import WORTHWHILE, Choice, choose
from dit_sparse.commands.lm_model import BUILT_IN, LanguageModel, load, locate
from dit_sparse.commands.model import device_of
from dit_sparse.commands.request import Asked, Request
from dit_sparse.commands.screen import Screen, hushed
from dit_sparse.commands.timing import at_least
from dit_sparse.errors import ArgumentError

DEFAULT, LENGTH = "xattention", 4096


@dataclass
class Order(Asked):
    """The arguments of `lm`; None = a default."""

    task: str | None
    length: int | None
    seed: int
    tokens: int
    compare: bool
    quiet: bool
    json: bool
    debug: bool

    def carry_out(self) -> None:
        """Answer, compare where that was asked for, and print."""
        screen = Screen(self.quiet, self.json)
        at_least(1, tokens=self.tokens)
        request = self._request()
        locate(self.model)
        device_of(self.device)
        # a wrong method or parameter shows before a model is loaded
        choice = choose(request, self.model) if self._named else None
        if self.prompt == "-":
            self.prompt = sys.stdin.read()
        self._check_text()
        with hushed(self.debug):
            screen.say(f"loading {self.model}")
            model = load(request)
            tokens, wanted = self._tokens(model)
            if choice is None:
                choice = self._default(request, tokens.shape[1])
            self._answer(screen, model, tokens, wanted, choice)

    @property
    def _named(self) -> bool:
        return bool(self.method or self.profile or self.set or self.keep is not None)

    def _request(self) -> Request:
        """Return the arguments that generations of all kinds have, checked."""
        request = Request(
            "any", self.model, self.device, self.dtype, method=self.method, keep=self.keep,
            profile=self.profile, set=tuple(self.set or ()), seed=self.seed, compare=self.compare,
            out=Path.cwd(), debug=self.debug,
        )  # fmt: skip
        request.check()
        if (self.set or self.keep is not None) and not (self.method or self.profile):
            raise ArgumentError("--set and --keep need --method or --profile: whose are they?")
        return request

    def _check_text(self) -> None:
        """Raise unless there is one text."""
        from dit_sparse.haystack import TASKS

        if (self.prompt is None) == (self.task is None):
            raise ArgumentError("lm needs either a PROMPT or --task, e.g. --task passkey")
        if self.task is None:
            if self.length is not None:
                raise ArgumentError(f"--length {self.length} is the length of a --task text")
            if not (self.prompt or "").strip():
                raise ArgumentError("the prompt is empty; say what the answer follows")
        elif self.task not in TASKS:
            raise ArgumentError(f"--task {self.task} is not known; use {', '.join(TASKS)}")
        elif self.model != BUILT_IN:
            raise ArgumentError(f"--task is a text of needle's words: not for --model {self.model}")
        at_least(256, length=self.length)

    def _tokens(self, model: LanguageModel) -> tuple[Any, str | None]:
        """Return the prompt as tokens [1, S], and the right answer where it is known."""
        from dit_sparse import haystack

        wanted = None
        if self.task is not None:
            length = self.length or LENGTH
            found, answer, _ = haystack.prompts(1, length, self.task, self.seed)
            wanted = haystack.words(answer[0])
        else:
            found = model.tokenizer(self.prompt, return_tensors="pt").input_ids
            strange = _strange(self.prompt or "") if model.built_in else ""
            if strange:
                raise ArgumentError(
                    f"the prompt says {strange!r}, and needle knows the words of its own language "
                    "alone: try --task recall, which makes a text of them, or another --model"
                )
        if found.shape[1] + self.tokens > model.longest:
            raise ArgumentError(
                f"the prompt has {found.shape[1]} tokens; with --tokens {self.tokens} that is more "
                f"than the {model.longest} of {self.model}"
            )
        return found, wanted

    def _default(self, request: Request, tokens: int) -> Choice:
        """Return the method where none was named."""
        name = DEFAULT if tokens >= WORTHWHILE or self.compare else "dense"
        choice = choose(replace(request, method=name, compare=False), self.model)
        assert choice is not None
        return replace(choice, reason=f"default: {tokens:,} tokens")

    def _answer(
        self, screen: Screen, model: LanguageModel, tokens: Any, wanted: str | None, choice: Choice
    ) -> None:
        """Answer, once more on a GPU, whose first calls compile, and print."""
        from dit_sparse.integrations import transformers as host
        from dit_sparse.quality.answers import Answer, generate
        from dit_sparse.quality.budget import sparse_density
        from dit_sparse.registry import entry

        def run() -> Answer:
            if next(model.model.parameters()).is_cuda:
                generate(model.model, tokens, min(2, self.tokens), ())
            return generate(model.model, tokens, self.tokens, model.stop)

        dense = run() if self.compare or choice.name == "dense" else None
        report, sparse = None, dense
        if choice.name != "dense":
            screen.say(f"answering with {choice.label}")
            known = entry(choice.name).parameters
            own = {k: v for k, v in choice.params.items() if v != known[k]}
            host.enable(model.model, choice.name, schedule=choice.value.schedule, **own)
            sparse = run()
            report = host.report(model.model)
            host.disable(model.model)
        assert sparse is not None
        text = self._text(model, sparse)
        seconds = {"prefill": sparse.prefill, "decode": sparse.decoding}
        data: dict[str, Any] = {
            "answer": text,
            "right": None
            if wanted is None
            else text.split()[: len(wanted.split())] == wanted.split(),
            "wanted": wanted,
            "model": self.model,
            "method": choice.name,
            "params": {k: list(v) if isinstance(v, tuple) else v for k, v in choice.params.items()},
            "prompt_tokens": tokens.shape[1],
            "new_tokens": sparse.tokens.shape[1],
            "density": 1.0 if report is None else sparse_density(report),
            "dense_calls": {} if report is None else dict(report.reasons),
            "seconds": {k: round(v, 4) for k, v in seconds.items()},
            "prefill_tokens_per_second": round(tokens.shape[1] / sparse.prefill, 1),
            "decode_tokens_per_second": round(sparse.rate, 1) or None,
            "compare": None,
        }
        if self.compare and dense is not None:
            data["compare"] = self._compare(model, dense, sparse)
        if self.quiet and not self.json:
            print(text)
            return
        screen.result(data, _rows(data, choice), [])

    def _text(self, model: LanguageModel, answer: Any) -> str:
        """Return an answer as text."""
        tokens = answer.tokens[0].tolist()
        ended = bool(tokens) and tokens[-1] in model.stop
        shown = tokens[: len(tokens) - ended]
        return model.tokenizer.decode(shown, skip_special_tokens=True).strip()

    def _compare(self, model: LanguageModel, dense: Any, sparse: Any) -> dict[str, Any]:
        """Return what dense answered, and how many tokens agree before the first that does not."""
        a, b = dense.tokens[0].tolist(), sparse.tokens[0].tolist()
        same = next(
            (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
        )
        return {
            "answer": self._text(model, dense),
            "same_tokens": same,
            "agreement": same / max(len(a), len(b)),
            "prefill_speedup": round(dense.prefill / sparse.prefill, 3),
            "seconds": {"prefill": round(dense.prefill, 4), "decode": round(dense.decoding, 4)},
        }


def _strange(prompt: str) -> str:
    """Return the first word of a prompt that `needle` does not know, "" without any."""
    from dit_sparse.haystack import ID

    found = re.findall(r"\w+|[^\w\s]+", prompt)
    return next((word for word in found if word not in ID), "")


def _rows(data: dict[str, Any], choice: Choice) -> list[tuple[str, str]]:
    """Return what the table shows."""
    right = {None: "", True: "  (right)", False: f"  (wrong: {data['wanted']})"}[data["right"]]
    rate = data["decode_tokens_per_second"]
    rows = [
        ("answer", data["answer"] + right),
        ("model", f"{data['model']}, {data['prompt_tokens']:,} tokens of prompt"),
        ("method", choice.label + (f"  ({choice.reason})" if choice.reason else "")),
        ("density", f"{data['density']:.1%} of the attention of sparse calls computed"),
        ("prefill", f"{data['seconds']['prefill']:.3f} s, "
                    f"{data['prefill_tokens_per_second']:,.0f} tokens/s"),
        ("decoding", "" if rate is None else f"{rate:,.1f} tokens/s"),
    ]  # fmt: skip
    told = data["compare"]
    if told is not None:
        new = max(data["new_tokens"], 1)
        rows += [
            ("dense", told["answer"]),
            ("agreement", f"{told['same_tokens']} of {new} tokens before the first difference"),
            ("dense prefill", f"{told['seconds']['prefill']:.3f} s: {told['prefill_speedup']:.2f}x "
                              "the time of sparse"),
        ]  # fmt: skip
    dense = [f"{count} calls: {why}" for why, count in data["dense_calls"].items()]
    rows += [("kept dense" if n == 0 else "", text) for n, text in enumerate(dense)]
    return [(name, text) for name, text in rows if text]
