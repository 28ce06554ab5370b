"""What the tab "Compare" compares: the evaluation that ships with a model, or a small one made now.

result = saved("shapes")                                # of `dit-sparse eval`, None without one
result = measure(model, request, ["pisa", "draft"], 0.25, videos=2, turn=bar)
table(result), setting(result, "pisa keep=0.25")
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from dit_sparse.commands.attention import choose
from dit_sparse.commands.evaluation import Surroundings
from dit_sparse.commands.loading import Loaded, own_prompts
from dit_sparse.commands.model import locate
from dit_sparse.commands.request import Request, parse_setting
from dit_sparse.commands.sampling import Run, RunError, sample
from dit_sparse.errors import ArgumentError
from dit_sparse.parameters import as_tuples
from dit_sparse.quality.cases import Case, at_budgets
from dit_sparse.quality.results import Result
from dit_sparse.quality.run import Evaluation
from dit_sparse.quality.store import Store

FILE = "evaluation.json"
METHODS, VIDEOS = 3, 3  # of a measurement made now, at most
STEPS = 6  # of its generations
# title, metric, digits
COLUMNS = (
    ("PSNR, dB", "psnr", 2),
    ("SSIM", "ssim", 3),
    ("density", "density", 3),
    ("time, s", "seconds", 2),
    ("speed-up", "speedup", 2),
    ("attention kept", "recall", 3),
    ("attention error", "error", 3),
)


def saved(model: str) -> Result | None:
    """Return the evaluation that lies beside a model, None when there is none."""
    place = locate(model)
    path = place / FILE if isinstance(place, Path) else None
    return Result.load(path) if path is not None and path.is_file() else None


@lru_cache(maxsize=8)
def offered(model: str) -> dict[str, set[str]]:
    """Return the settings, by method, that can be loaded from a model's own evaluation."""
    found: dict[str, set[str]] = defaultdict(set)
    if result := saved(model):
        for row in result.sparse:
            asked = setting(result, row.label)
            found[asked["method"]].add(asked["settings"])
    return dict(found)


def measurable() -> list[str]:
    """Return the methods that have a budget and serve videos."""
    from dit_sparse.bench.method import names

    return names()


class Live(Surroundings):
    """Generates for an evaluation and shows every step of it, counted over all its videos."""

    def __init__(self, model: Loaded, bar: Any, videos: int) -> None:
        super().__init__(model, bar, math.inf, None)
        self.last = (0, videos, "")

    def sample(self, prompt: str, seed: int, **options: Any) -> Run:
        """Generate one video."""
        return sample(self.model.pipe, self.model.call(prompt, **options), seed, self)

    def show(self, step: int, steps: int, note: str) -> None:
        """Show the step of the generation that runs; one to warm up counts nothing."""
        done, total, _ = self.last
        whole = self.model.arguments.get("num_inference_steps", steps)
        self.bar.show(done * whole + step * (steps == whole), total * whole, note)

    def tell(self, done: int, total: int, note: str) -> None:
        """Count the generation that is done."""
        self.last = (done, total, note)


def small(request: Request, frames: tuple[int, ...]) -> Request:
    """Return a request with few steps and, where lengths are offered, the shortest video."""
    return replace(request, steps=STEPS, frames=min((n for n in frames if n > 1), default=None))


def measure(
    model: Loaded, request: Request, names: list[str], keep: float, videos: int, turn: Any
) -> Result:
    """Measure methods at one budget on a few prompts that training never saw.

    turn: shows the progress, `show(done, total, note)`, and may stop the work there.
    """
    import torch

    from dit_sparse.bench.machine import facts

    check(names, keep, videos)
    cases = []
    for name in names:
        choice = choose(replace(request, method=name, keep=None, profile=None, set=()), model.name)
        assert choice is not None
        cases.append(Case(name, name, choice.params, choice.value.schedule))
    texts = own_prompts(request.model, videos)
    surroundings = Live(model, turn, videos * (1 + len(cases)))
    with tempfile.TemporaryDirectory() as folder:
        evaluation = Evaluation(
            model.pipe, at_budgets(cases, [keep], []), [(t, n) for n, t in enumerate(texts)],
            surroundings.sample, Store(Path(folder) / "runs.jsonl"), model.facts(request),
            facts(torch.device(model.pipe.device)), probes=1, hooks=surroundings,
        )  # fmt: skip
        evaluation.run()
        result = evaluation.result()
    if not result.sparse:
        raise RunError(f"nothing was measured: {next(iter(result.failed.values()), 'stopped')}")
    return result


def check(names: list[str], keep: float, videos: int) -> None:
    """Raise unless a measurement of this size may be made now."""
    if not 1 <= len(names) <= METHODS:
        raise ArgumentError(f"{len(names)} methods are chosen; take 1 to {METHODS}")
    if unknown := [name for name in names if name not in measurable()]:
        raise ArgumentError(f"method {unknown[0]!r} cannot be measured here")
    if not 0 < keep <= 1:
        raise ArgumentError(f"keep {keep:g} must be above 0 and at most 1, e.g. 0.25")
    if not 1 <= videos <= VIDEOS:
        raise ArgumentError(f"{videos} videos are asked for; take 1 to {VIDEOS}")


def methods(result: Result) -> list[str]:
    """Return the methods of a result."""
    return sorted({row.facts["method"] for row in result.sparse})


def table(result: Result, shown: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows of some methods, the best PSNR first."""
    front = {row.label for row in result.front()}
    rows = []
    for row in result.sparse:
        found = [(result.mean(row, metric), digits) for _, metric, digits in COLUMNS]
        cells = ["" if mean is None else f"{mean.value:.{digits}f}" for mean, digits in found]
        if row.facts["method"] in shown:
            rows.append([row.label, *cells, "yes" if row.label in front else ""])
    rows.sort(key=lambda cells: float(cells[1] or "-inf"), reverse=True)
    titles = ["setting", *(title for title, *_ in COLUMNS), "front"]
    # what was never measured needs no column
    used = [n for n in range(len(titles)) if n == 0 or any(row[n] for row in rows)]
    return [titles[n] for n in used], [[row[n] for n in used] for row in rows]


def setting(result: Result | None, label: str) -> dict[str, Any]:
    """Return method, budget and other settings of a row, as the tab "Generate" calls them.

    keep: None where the method has no such parameter. settings: KEY=VALUE, a line for each that
    the method does not have anyway on this model.
    """
    rows = result.sparse if result is not None else []
    row = next((row for row in rows if row.label == label), None)
    if result is None or row is None:
        raise ArgumentError(f"{label!r} is no row of this evaluation")
    name, model = row.facts["method"], result.settings["model"]
    choice = choose(Request("any", model, method=name), model)
    assert choice is not None
    # a schedule of the whole evaluation is a setting as well
    params = {**row.facts.get("schedule", {}), **row.facts.get("params", {})}
    keep = row.facts.get("keep", params.get("keep"))
    other = {
        k: v for k, v in params.items()
        if k in choice.params and k != "keep" and as_tuples(v) != as_tuples(choice.params[k])
    }  # fmt: skip
    lines = [f"{k}={json.dumps(v)}" for k, v in other.items()]
    return {"method": name, "keep": keep, "settings": "\n".join(lines)}


def enabling(found: dict[str, Any]) -> str:
    """Return the line of Python that enables what `setting` found on a pipeline."""
    keep = {} if found["keep"] is None else {"keep": found["keep"]}
    params = keep | dict(parse_setting(line) for line in found["settings"].splitlines())
    told = "".join(f", {name}={value!r}" for name, value in params.items())
    return f"dit_sparse.enable(pipe, {found['method']!r}{told})"


def told(result: Result) -> str:
    """Say in one line what was measured, and where."""
    device, settings = result.machine["device"], result.settings
    prompts = len({prompt for prompt, _ in result.videos})
    words = {"num_frames": "frames", "num_inference_steps": "steps"}
    size = [f"{settings[key]} {word}" for key, word in words.items() if settings.get(key)]
    count = len(result.videos)
    videos = f"{count} video{'s' * (count > 1)} of {prompts} prompt{'s' * (prompts > 1)}"
    return (
        f"Model {settings.get('model')}, {', '.join([videos, *size])}, each against dense from the "
        f"same noise; {device}."
    )
