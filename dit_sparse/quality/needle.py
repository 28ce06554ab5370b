"""How many answers of the language model `needle` survive a method: tasks, lengths, settings.

Every text ends with questions of all tasks and their answers. A question counts when the model
finds every token of its answer, given the text before it: then it would have said the answer. A
method for the prefill reads all of the text; one for decoding finds a dense prefill and reads the
last tokens, with the questions in them, in decoding steps. The perplexity is that of the filler
among these last tokens.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_sparse.errors import ArgumentError
from dit_sparse.haystack import SOUGHT, TASKS, Counts, Texts, texts
from dit_sparse.quality.answers import tail_logits
from dit_sparse.quality.budget import sparse_density
from dit_sparse.quality.cases import DENSE, Case, check_labels
from dit_sparse.quality.store import Store, contents, key_of
from dit_sparse.registry import entry

TAIL = 256
# questions at the end of every text
ASKED = {"recall": 5, "passkey": 1, "roads": 2}
# tokens that go through the model at once
TOGETHER = {"cuda": 1 << 17, "cpu": 1 << 14}


@dataclass(frozen=True)
class Cell:
    """One case at one length, over the texts that were read.

    right: task -> share of questions answered. agreement: share of the looked-up tokens that are
    the dense model's. nll: mean negative log-likelihood of filler. density: of the sparse calls.
    """

    length: int
    texts: int
    right: dict[str, float]
    agreement: float | None
    nll: float
    density: float
    seconds: float

    @property
    def perplexity(self) -> float:
        """Return exp of the mean negative log-likelihood."""
        return math.exp(self.nll)


@dataclass
class Row:
    """A case and what was measured of it; failed: why nothing could be."""

    label: str
    method: str
    params: dict[str, Any]
    phase: str
    cells: list[Cell] = field(default_factory=list)
    failed: str = ""

    def cell(self, length: int) -> Cell | None:
        """Return what was measured at a length."""
        return next((cell for cell in self.cells if cell.length == length), None)


@dataclass
class Result:
    """All rows of an evaluation, the first one dense; count: texts of each length."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    lengths: list[int]
    count: int
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for JSON."""
        return {"task": "needle", "asked": ASKED, "tail": TAIL, **asdict(self)}

    @classmethod
    def of(cls, told: dict[str, Any]) -> Result:
        """Return the result of such data; raises KeyError or TypeError where it is none."""
        rows = [
            Row(**{**row, "cells": [Cell(**cell) for cell in row["cells"]]}) for row in told["rows"]
        ]
        return cls(told["settings"], told["machine"], told["lengths"], told["count"], rows)


@dataclass
class Evaluation:
    """Evaluate cases on a model of transformers that knows the words of `haystack`.

    count: texts of each length, the same ones for every case. settings, machine: what the
    values depend on besides. tell: hears of progress. stop: whether nothing new should be started.
    """

    model: Any
    cases: list[Case]
    lengths: list[int]
    count: int
    seed: int
    store: Store
    settings: dict[str, Any]
    machine: dict[str, Any]
    tell: Callable[[int, int, str], None] = lambda done, total, note: None
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        check_labels(self.cases)
        layers = self.model.config.num_hidden_layers
        self.rows, self.files = [Row(DENSE, DENSE, {}, "")], {}
        self.drawn: dict[int, tuple[Texts, list[str]]] = {}
        for case in self.cases:
            method = case.build()
            method.check(layers, self.model.config.num_attention_heads)
            # a file is what it holds, not where it lies
            params, label = dict(case.params), case.label
            if weights := params.get("weights"):
                params["weights"] = Path(weights).name
                label = label.replace(str(weights), params["weights"])
                self.files[label] = [entry[1:] for entry in contents(str(weights))]
            self.rows.append(Row(label, case.method, params, method.schedule.phase))

    def run(self) -> None:
        """Measure what is not on file yet, dense first; leaves the model dense."""
        from dit_sparse.integrations import transformers as host

        todo = list(self._todo())
        try:
            for done, (number, length, missing) in enumerate(todo):
                row = self.rows[number]
                if self.stop():
                    break
                if row.failed:
                    continue
                try:
                    if number:
                        host.enable(self.model, self.cases[number - 1].build())
                    else:
                        host.disable(self.model)
                    for at, record in zip(
                        missing, self._measure(row, length, missing), strict=True
                    ):
                        self.store.add(self._key(row, length, at), record)
                except Exception as error:
                    if not number:
                        raise
                    row.failed = " ".join(str(error).split())[:300] or type(error).__name__
                self.tell(done + 1, len(todo), f"{row.label} at {length}")
        finally:
            host.disable(self.model)

    def _todo(self) -> Iterator[tuple[int, int, list[int]]]:
        """Yield row, length and texts that are to be read: some texts by all rows, then others."""
        for length in self.lengths:
            together = max(1, TOGETHER[next(self.model.parameters()).device.type] // length)
            for some in torch.arange(self.count).split(together):
                for number, row in enumerate(self.rows):
                    missing = [at for at in some.tolist() if self._found(row, length, at) is None]
                    if missing:
                        yield number, length, missing

    def result(self) -> Result:
        """Return what is on file for these settings."""
        for row in self.rows:
            found = (self._cell(row, length) for length in self.lengths)
            row.cells = [cell for cell in found if cell is not None]
        return Result(self.settings, self.machine, self.lengths, self.count, self.rows)

    def _texts(self, length: int) -> tuple[Texts, list[str]]:
        """Return the texts of a length, and what each is known by on file.

        Each is drawn by itself, so that more of them are the same ones and some.
        """
        if length not in self.drawn:
            found = [
                texts(1, length, Counts.usual(length, ASKED), _generator(self.seed, number))
                for number in range(self.count)
            ]
            told = [hashlib.sha256(str(t.tokens.tolist()).encode()).hexdigest() for t in found]
            tokens, sought = (torch.cat(part) for part in zip(*map(_pair, found), strict=True))
            self.drawn[length] = Texts(tokens, sought), told
        return self.drawn[length]

    def _found(self, row: Row, length: int, number: int) -> dict[str, Any] | None:
        return self.store.get(self._key(row, length, number))

    def _key(self, row: Row, length: int, number: int) -> str:
        # defaults that were written out and those that were not are the same
        known = {} if row.method == DENSE else entry(row.method).parameters
        params = {k: v for k, v in {**known, **row.params}.items() if k != "weights"}
        files, text = self.files.get(row.label, []), self._texts(length)[1][number]
        return key_of(self.settings, self.machine, row.method, params, files, text, TAIL)

    def _measure(self, row: Row, length: int, numbers: list[int]) -> list[dict[str, Any]]:
        """Return the tokens that were found, and the surprise at filler, of some texts."""
        begin, given = time.perf_counter(), self._texts(length)[0]
        tokens, sought = given.tokens[numbers], given.sought[numbers][:, -TAIL:]
        logits = tail_logits(self.model, tokens, TAIL, row.phase == "decode")
        goal = tokens[:, -TAIL:].to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits.mT, goal, reduction="none").cpu()
        filler = (sought == 0).float()
        losses = ((loss * filler).sum(1) / filler.sum(1)).tolist()
        found, density = logits.argmax(-1).cpu(), self._density(row)
        seconds = round((time.perf_counter() - begin) / len(numbers), 3)
        return [
            {
                "case": row.label, "length": length, "text": number, "picked": t[s > 0].tolist(),
                "nll": nll, "density": density, "seconds": seconds,
            }
            for number, t, s, nll in zip(numbers, found, sought, losses, strict=True)
        ]  # fmt: skip

    def _density(self, row: Row) -> float:
        """Return the density of the sparse calls of the newest generation; raise without any."""
        from dit_sparse.integrations import transformers as host

        if row.method == DENSE:
            return 1.0
        report = host.report(self.model)
        if not report.sparse_calls:
            why = next(iter(report.reasons), "no attention call arrived")
            raise ArgumentError(f"every call was dense: {why}")
        return sparse_density(report)

    def _cell(self, row: Row, length: int) -> Cell | None:
        """Return what is on file of a row, for the texts that dense attention has read, too."""
        numbers: list[int] = []
        found: list[dict[str, Any]] = []
        dense: list[dict[str, Any]] = []
        for number in range(self.count):
            own, other = (self._found(one, length, number) for one in (row, self.rows[0]))
            if own is not None and other is not None:
                numbers.append(number)
                found.append(own)
                dense.append(other)
        if not numbers:
            return None
        given = self._texts(length)[0]
        picked = [record["picked"] for record in found]
        same = [
            a == b
            for one, other in zip(picked, dense, strict=True)
            for a, b in zip(one, other["picked"], strict=True)
        ]

        def mean(name: str) -> float:
            return sum(record[name] for record in found) / len(found)

        right = answered(Texts(given.tokens[numbers], given.sought[numbers]), picked)
        seconds = round(mean("seconds") * len(found), 3)
        return Cell(
            length, len(found), right, sum(same) / len(same), mean("nll"), mean("density"), seconds
        )


def _generator(seed: int, number: int) -> torch.Generator:
    """Return the generator of a text."""
    return torch.Generator().manual_seed(int(key_of(seed, number), 16) >> 17)


def _pair(text: Texts) -> tuple[Tensor, Tensor]:
    return text.tokens, text.sought


def answered(given: Texts, picked: list[list[int]]) -> dict[str, float]:
    """Return the share of questions of each task whose every looked-up token was picked.

    picked: tokens at the looked-up places of each text, in order.
    """
    right: dict[str, list[bool]] = {task: [] for task in TASKS}
    for tokens, sought, found in zip(given.tokens, given.sought, picked, strict=True):
        hits = (tokens[sought > 0] == torch.tensor(found)).tolist()
        for task, size in _questions(sought):
            right[task].append(all(hits[:size]))
            hits = hits[size:]
    return {task: sum(hits) / len(hits) for task, hits in right.items() if hits}


def _questions(sought: Tensor) -> list[tuple[str, int]]:
    """Return task and number of looked-up tokens of each question of a text, in order."""
    found, marks = [], sought[sought > 0].tolist()
    while marks:
        task = TASKS[marks[0] - 1]
        size = len(SOUGHT[task])
        found.append((task, size))
        marks = marks[size:]
    return found
