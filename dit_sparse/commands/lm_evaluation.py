"""From the arguments of `eval --task needle` to cases, measurements and files."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from dit_sparse.commands.evaluate import evaluate
from dit_sparse.commands.evaluation import of_name, of_text
from dit_sparse.commands.lm_model import BUILT_IN, folder, load, locate
from dit_sparse.commands.model import BUILT_IN as VIDEOS
from dit_sparse.commands.model import device_of
from dit_sparse.commands.request import Request, check_name, check_set, folder_for
from dit_sparse.commands.screen import Screen, hushed
from dit_sparse.commands.timing import at_least
from dit_sparse.errors import ArgumentError

TASK, COUNT, LENGTHS = "needle", 16, "4096,8192,16384"


@dataclass
class Order:
    """The arguments of `eval` that hold for texts; None = a default."""

    model: str
    device: str
    dtype: str
    method: str | None
    set: list[str] | None
    case: list[str] | None
    cases: Path | None
    count: int | None
    length: str | None
    seed: int
    seconds: float
    out: Path | None
    show: Path | None
    quiet: bool
    json: bool
    markdown: bool
    debug: bool

    @classmethod
    def of(cls, given: dict[str, Any]) -> Order:
        """Return the order of all arguments of `eval`; raise where one is for videos."""
        if given["task"] != TASK:
            raise ArgumentError(f"--task {given['task']} is not known; use {TASK}, or leave it out")
        names = cls.__dataclass_fields__
        for name, parameter in signature(evaluate).parameters.items():
            if name not in names and name != "task" and given[name] != parameter.default:
                option = "--" + name.replace("_", "-")
                raise ArgumentError(f"{option} is for videos: --task {TASK} does not take it")
        model = given["model"] or BUILT_IN
        if model == VIDEOS:
            raise ArgumentError(
                f"--model {model} makes videos: --task {TASK} is answered by {BUILT_IN}, or by a "
                "model that was trained as it was"
            )
        return cls(**{**{name: given[name] for name in names}, "model": model})

    def carry_out(self) -> None:
        """Measure, write and print."""
        self.screen = Screen(self.quiet, self.json)
        if self.show is not None:
            self._print(read(self.show), [])
            return
        at_least(1, count=self.count)
        if not self.seconds > 0:
            raise ArgumentError(f"--seconds {self.seconds:g} must be above 0")
        request = Request("any", self.model, self.device, self.dtype, seed=self.seed,
                          out=Path.cwd(), debug=self.debug)  # fmt: skip
        request.check()
        locate(self.model)
        device_of(self.device)
        lengths, cases = self._lengths(), self._cases(request)
        place = folder_for(self.out or Path(f"eval-{TASK}"))
        with hushed(self.debug):
            self._evaluate(request, lengths, cases, place)

    def _evaluate(
        self, request: Request, lengths: list[int], cases: list[Any], place: Path
    ) -> None:
        """Measure, and write what is there however the run ends."""
        from dit_sparse.bench.machine import facts
        from dit_sparse.haystack import ID
        from dit_sparse.quality.needle import Evaluation
        from dit_sparse.quality.store import Store

        self.screen.say(f"loading {self.model}")
        model = load(request)
        known = model.tokenizer.get_vocab()
        if any(known.get(word) != number for word, number in ID.items()):
            raise ArgumentError(
                f"--model {self.model} has other words than needle; --task {TASK} is for that "
                "model, trained anew or not"
            )
        if max(lengths) + 16 > model.longest:
            raise ArgumentError(
                f"--length {max(lengths)} is above the {model.longest} of the model"
            )
        place.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + self.seconds
        with self.screen.steps("eval") as bar:
            evaluation = Evaluation(
                model.model, cases, lengths, self.count or COUNT, self.seed,
                Store(place / "runs.jsonl"), model.facts(), facts(model.model.device),
                bar.show, lambda: time.monotonic() > end,
            )  # fmt: skip
            try:
                evaluation.run()
            except BaseException:
                if self._write(evaluation.result(), place):
                    self.screen.say(f"what was measured is in {place}; run again to go on")
                raise
        result = evaluation.result()
        files = self._write(result, place)
        if not files:
            raise RuntimeError(f"nothing was measured: --seconds {self.seconds:g} were over")
        self._print(result, files)

    def _write(self, result: Any, place: Path) -> list[Path]:
        """Write JSON and Markdown; return their names, none without a value."""
        from dit_sparse.media import part_file, publish
        from dit_sparse.quality import needle_table

        if not any(row.cells for row in result.rows):
            return []
        told = json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        names = [place / "eval.json", place / "eval.md"]
        for name, text in zip(names, (told, needle_table.markdown(result)), strict=True):
            with part_file(name) as part:
                part.write_text(text, "utf-8")
                publish(part, name, overwrite=True)
        return names

    def _print(self, result: Any, files: list[Path]) -> None:
        """Print the result in the form that was asked for."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        from dit_sparse.quality import needle_table

        if self.json:
            print(json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False))
        elif self.markdown:
            print(needle_table.markdown(result), end="")
        elif self.quiet:
            print("\n".join(map(str, files)))
        else:
            console = Console(width=None if self.screen.out.is_terminal else 200, highlight=False)
            for length in result.lengths:
                shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
                              title=f"{length:,} tokens", title_justify="left")  # fmt: skip
                for name in needle_table.TITLES:
                    shown.add_column(name, justify="left" if name == "method" else "right")
                for cells in needle_table.table(result, length):
                    shown.add_row(*cells)
                console.print(shown, markup=False)
            for text in [*needle_table.notes(result), *(f"wrote {path}" for path in files)]:
                self.screen.out.print(text, style="dim", markup=False)

    def _lengths(self) -> list[int]:
        """Return the lengths of the texts."""
        from dit_sparse.quality.needle import TAIL

        words = [word.strip() for word in (self.length or LENGTHS).split(",")]
        if not all(word.isdigit() and int(word) >= 2 * TAIL for word in words):
            raise ArgumentError(
                f"--length {self.length} must be numbers of tokens from {2 * TAIL}, e.g. {LENGTHS}"
            )
        return list(dict.fromkeys(map(int, words)))

    def _cases(self, request: Request) -> list[Any]:
        """Return the cases that were named, or those of the sweep."""
        from dit_sparse.quality import cases as asked
        from dit_sparse.quality.needle_cases import SWEEP, sweep

        names = [name.strip() for name in (self.method or "").split(",") if name.strip()]
        for name in names:
            check_name(name)
        check_set(self.set, names, budget=True)
        made = [of_text(text, request, self.model) for text in self.case or ()]
        if self.set:
            made.append(of_name(names[0], self.set, request, self.model))
        elif names or not (self.case or self.cases):
            made += sweep(names or SWEEP, folder())
        if self.cases is not None:
            made += asked.read(self.cases)[0]
        asked.check_labels(made)
        for case in made:
            if not case.build().schedule.phase:
                raise ArgumentError(
                    f"case {case.label!r}: {case.method} is a method for videos; use one of "
                    f"{', '.join(SWEEP)}"
                )
        return made


def read(path: Path) -> Any:
    """Return the result of an eval.json."""
    from dit_sparse.quality.needle import Result

    try:
        return Result.of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"--show {path} is no result of `eval --task {TASK}`: {error}"
        ) from None
