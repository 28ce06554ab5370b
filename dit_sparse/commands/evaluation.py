"""From the arguments of `eval` to cases, videos, measurements and files."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_sparse.commands.attention import Choice, choose
from dit_sparse.commands.job import FPS, checked, file_name
from dit_sparse.commands.loading import Loaded, loaded, prompts_of
from dit_sparse.commands.request import Request, check_set, folder_for, of_case, split_case
from dit_sparse.commands.sampling import Run, sample
from dit_sparse.commands.screen import Bar, Screen, hushed
from dit_sparse.commands.timing import at_least, numbers
from dit_sparse.errors import ArgumentError
from dit_sparse.quality.run import Evaluation, Hooks

COUNT, KEEPS = 8, ".125,.25,.5"
# the seeds of one prompt lie so far apart that no two videos begin from the same noise
APART = 1000


@dataclass
class Order:
    """The arguments of `eval`; None = a default."""

    model: str
    device: str
    dtype: str
    compile: bool
    method: str | None
    keep: str | None
    density: str | None
    set: list[str] | None
    case: list[str] | None
    profile: list[str] | None
    cases: Path | None
    dense_steps: float | None
    prompts: Path | None
    prompt: list[str] | None
    count: int | None
    seeds: int
    seed: int
    steps: int | None
    frames: int | None
    height: int | None
    width: int | None
    guidance: float | None
    negative: str | None
    probes: int
    rows: int
    seconds: float
    out: Path | None
    videos: bool
    show: Path | None
    quiet: bool
    json: bool
    markdown: bool
    debug: bool

    def carry_out(self) -> None:
        """Do all that `eval` was asked for."""
        from dit_sparse.quality.results import Result

        self.screen = Screen(self.quiet, self.json)
        if self.show is not None:
            try:
                self._print(Result.load(self.show), [])
            except ArgumentError as error:
                raise ArgumentError(f"--show {error}") from error
            return
        self.request = self._request()
        name = file_name(self.model.replace("/", " "))
        folder = folder_for(self.out or Path(f"eval-{name}"))
        checked(self.request)
        # a wrong method or parameter shows before a model is loaded
        self._cases(self.model)
        prompts = prompts_of(self, self.count, COUNT)
        with hushed(self.debug):
            model = loaded(self.request, self.screen)
            cases, claims = self._cases(model.name)
            folder.mkdir(parents=True, exist_ok=True)
            # all prompts once before any of them twice
            videos = [
                (text, self.seed + number + APART * again)
                for again in range(self.seeds)
                for number, text in enumerate(prompts)
            ]
            self._evaluate(model, cases, claims, videos, folder)

    def _evaluate(
        self, model: Loaded, cases: list[Any], claims: list[Any], videos: list[Any], folder: Path
    ) -> None:
        """Measure, and write what is there however the run ends."""
        import torch

        from dit_sparse.bench.machine import facts
        from dit_sparse.quality.store import Store

        with self.screen.steps("eval") as bar:
            surroundings = Surroundings(model, bar, self.seconds, folder if self.videos else None)
            evaluation = Evaluation(
                model.pipe, cases, videos, surroundings.sample, Store(folder / "runs.jsonl"),
                model.facts(self.request), facts(torch.device(model.pipe.device)), claims,
                self.probes, self.rows, surroundings,
            )  # fmt: skip
            with self._reporting(evaluation, folder):
                evaluation.run()

    @contextmanager
    def _reporting(self, evaluation: Any, folder: Path) -> Iterator[None]:
        """Write the files on any way out; print them when the run went through."""
        try:
            yield
        except BaseException:
            if self._write(evaluation.result(), folder):
                self.screen.say(f"what was measured is in {folder}; run again to go on")
            raise
        result = evaluation.result()
        files = self._write(result, folder)
        if not files:
            why = next(iter(result.failed.values()), f"--seconds {self.seconds:g} were over")
            raise RuntimeError(f"nothing was measured: {why}")
        self._print(result, files)

    def _write(self, result: Any, folder: Path) -> list[Path]:
        """Write JSON, Markdown and the picture; returns their names, none without a case."""
        from dit_sparse.media import part_file, publish
        from dit_sparse.quality import plot, table

        if not result.sparse:
            return []
        names = [folder / f"eval.{kind}" for kind in ("json", "md")]
        result.write(names[0])
        with part_file(names[1]) as part:
            part.write_text(table.markdown(result), "utf-8")
            publish(part, names[1], overwrite=True)
        if why := plot.missing():
            self.screen.say(why)
            return names
        plot.write(result, folder / "eval.png")
        return [*names, folder / "eval.png"]

    def _print(self, result: Any, files: list[Path]) -> None:
        """Print the result in the form that was asked for."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        from dit_sparse.quality import table

        if self.json:
            print(json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False))
        elif self.markdown:
            print(table.markdown(result), end="")
        elif self.quiet:
            print("\n".join(map(str, files)))
        else:
            # a file or a pipe has no width of its own
            width = None if self.screen.out.is_terminal else 200
            console = Console(width=width, highlight=False)
            for target in table.targets(result):
                titles, body = table.rows(result, target, brief=True)
                title = None if target is None else f"density {target:g}"
                shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
                              title=title, title_justify="left")  # fmt: skip
                for name in titles:
                    shown.add_column(name, justify="left" if name == "method" else "right")
                for cells in body:
                    shown.add_row(*cells)
                console.print(shown, markup=False)
            for text in [*table.notes(result), *(f"wrote {path}" for path in files)]:
                self.screen.out.print(text, style="dim", markup=False)

    def _request(self) -> Request:
        """Return the generation that all videos have in common, checked."""
        at_least(1, count=self.count, seeds=self.seeds, rows=self.rows)
        at_least(0, probes=self.probes)
        if not self.seconds > 0:
            raise ArgumentError(f"--seconds {self.seconds:g} must be above 0")
        steps = self.dense_steps
        if steps is not None and not (0 <= steps < 1 or (steps >= 1 and steps.is_integer())):
            raise ArgumentError(
                f"--dense-steps {steps:g} must be a count (0, 1, 2, ...) or a share of the steps "
                "below 1"
            )
        return Request.of(self, out=Path.cwd())

    def _cases(self, model: str) -> tuple[list[Any], list[Any]]:
        """Return the cases, with the settings shipped for a model, and the claims of --cases."""
        from dit_sparse.quality import cases as asked

        if self.keep and self.density:
            raise ArgumentError("--keep and --density both set the budget; give one of them")
        targets = numbers(self.density, "--density", 0, 1) if self.density else []
        keeps = [] if targets else numbers(self.keep or KEEPS, "--keep", 0, 1)
        free, fixed, claims = self._named(model), [], []
        for text in self.case or ():
            own = any(word.startswith("keep=") for word in text.split())
            (fixed if own else free).append(of_text(text, self.request, model))
        if self.cases is not None:
            found, claims = asked.read(self.cases)
            for made in found:
                (fixed if "keep" in made.params else free).append(made)
        for name in self.profile or ():
            choice = choose(replace(self.request, profile=name), model)
            assert choice is not None
            fixed.append(_case(Path(name).stem if name.endswith(".toml") else name, choice))
        cases = [*asked.at_budgets(free, keeps, targets), *fixed]
        if self.dense_steps is not None:
            steps = self.dense_steps
            steps = int(steps) if steps == int(steps) else steps
            cases = [
                replace(made, schedule=replace(made.build().schedule, dense_steps=steps))
                for made in cases
            ]
        asked.check_labels(cases)
        return cases, claims

    def _named(self, model: str) -> list[Any]:
        """Return the cases of --method, or of all methods when no case was named at all."""
        from dit_sparse.bench.method import names

        found = [n.strip() for n in self.method.split(",")] if self.method else []
        check_set(self.set, found)
        if self.method is None and (self.case or self.cases or self.profile):
            return []
        return [of_name(name, self.set or [], self.request, model) for name in found or names()]


class Surroundings(Hooks):
    """Samples for an evaluation, judges and keeps its videos, and shows where it is."""

    def __init__(self, model: Loaded, bar: Bar, seconds: float, folder: Path | None) -> None:
        self.model, self.bar, self.folder = model, bar, folder
        self.end = time.monotonic() + seconds
        self.fps = model.trained.fps or FPS
        self.last = (0, 1, "")

    def sample(self, prompt: str, seed: int, **options: Any) -> Run:
        """Generate one video."""
        # elsewhere than on a terminal a line for every step would be too much
        steps = self if self.bar.progress is not None else None
        return sample(self.model.pipe, self.model.call(prompt, **options), seed, steps)

    def show(self, step: int, steps: int, note: str) -> None:
        """Show the step of the generation that runs, beside what is done."""
        done, total, before = self.last
        self.bar.show(done, total, f"{before}  step {step}/{steps}, {note}")

    def judge(self, frames: Any, prompt: str) -> dict[str, float]:
        """Tell whether a video of the built-in model shows what its prompt says."""
        if not self.model.built_in:
            return {}
        import numpy as np

        from dit_sparse import adherence
        from dit_sparse.media import to_uint8
        from dit_sparse.world import parse

        scene = parse(prompt)
        if scene is None or len(frames) < 2:
            return {}
        pixels = np.stack([to_uint8(frame) for frame in frames])
        right = adherence.score(pixels, scene, self.fps).values()
        return {"right": float(all(right)), "attributes": sum(right) / len(right)}

    def path(self, label: str, video: tuple[str, int]) -> Path | None:
        """Return the file of a video, None where none is kept."""
        if self.folder is None:
            return None
        prompt, seed = video
        name = f"{file_name(prompt)}-{seed}"
        kind = ".mp4" if self.model.arguments.get("num_frames", 1) > 1 else ".png"
        return self.folder / "videos" / label.replace("/", "-") / (name + kind)

    def save(self, label: str, video: tuple[str, int], frames: Any) -> None:
        """Keep a video where that was asked for."""
        from dit_sparse import media

        path = self.path(label, video)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            media.write(path, frames, self.fps)

    def saved(self, label: str, video: tuple[str, int]) -> bool:
        """Tell whether a video is kept already, or need not be."""
        path = self.path(label, video)
        return path is None or path.is_file()

    def tell(self, done: int, total: int, note: str) -> None:
        """Show where the run is."""
        self.last = (done, total, note)
        self.bar.show(*self.last)

    def stop(self) -> bool:
        """Tell whether the time is over."""
        return time.monotonic() > self.end


def _case(label: str, choice: Choice) -> Any:
    """Return the case of a choice."""
    from dit_sparse.quality.cases import Case

    return Case(label, choice.name, choice.params, choice.value.schedule)


def of_text(text: str, request: Request, model: str) -> Any:
    """Return the case of a text such as `pisa order=0`, with what else is requested."""
    name, settings = split_case(text)
    with of_case(text):
        return of_name(name, settings, request, model)


def of_name(name: str, settings: list[str], request: Request, model: str) -> Any:
    """Return the case of a method with settings KEY=VALUE."""
    # TOML wants a digit before the point
    settings = [re.sub(r"=\.(?=\d)", "=0.", text) for text in settings]
    request = replace(request, method=name, set=tuple(settings))
    request.check()
    choice = choose(request, model)
    assert choice is not None
    return _case(" ".join([name, *(text.replace(" ", "") for text in settings)]), choice)
