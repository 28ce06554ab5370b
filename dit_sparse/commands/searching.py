"""From the arguments of `search` to a profile."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from dit_sparse.commands.job import checked, file_name
from dit_sparse.commands.loading import Loaded, loaded, prompts_of
from dit_sparse.commands.request import Request, folder_for
from dit_sparse.commands.results import faster
from dit_sparse.commands.sampling import sample
from dit_sparse.commands.screen import Bar, Screen, hushed
from dit_sparse.commands.timing import at_least
from dit_sparse.errors import ArgumentError, DitSparseError

COUNT, ERROR, EPS, PENALTY = 1, 0.1, 1.0, 0.5
# far from the seeds of `eval`, and from its held-out prompts of the built-in model
SEED, OTHERS = 500, 1000


@dataclass
class Order:
    """The arguments of `search`; None = a default."""

    model: str
    device: str
    dtype: str
    compile: bool
    budget_error: float | None
    budget_psnr: float | None
    speedup: float | None
    candidate: list[str] | None
    parts: int
    dense_start: bool
    sensitivity: bool
    rule: str
    eps: float | None
    penalty: float | None
    prompts: Path | None
    prompt: list[str] | None
    count: int | None
    checks: int
    seed: int
    steps: int | None
    frames: int | None
    height: int | None
    width: int | None
    guidance: float | None
    negative: str | None
    out: Path | None
    quiet: bool
    json: bool
    debug: bool

    def carry_out(self) -> None:
        """Search, and write what was found."""
        self.screen = Screen(self.quiet, self.json)
        request = self._request()
        texts = prompts_of(self, self.count, COUNT, seed=OTHERS)
        candidates = self._candidates()
        out = self.out or Path(f"{file_name(self.model.replace('/', ' '))}--mixed.toml")
        if out.suffix != ".toml" or out.is_dir():
            raise ArgumentError(f"--out {out} must be the name of a .toml file")
        folder_for(out.parent)
        checked(request)
        with hushed(self.debug):
            model = loaded(request, self.screen)
            videos = [(text, self.seed + SEED + n) for n, text in enumerate(texts)]
            out.parent.mkdir(parents=True, exist_ok=True)
            with self.screen.steps("search") as bar:
                try:
                    self._search(model, request, candidates, videos, out, bar)
                except BaseException:
                    runs = out.with_suffix(".jsonl")
                    if runs.is_file():
                        self.screen.say(f"what was measured is in {runs}; run again to go on")
                    raise

    def _search(
        self, model: Loaded, request: Request, candidates: Any, videos: list[Any], out: Path,
        bar: Bar,
    ) -> None:  # fmt: skip
        """Measure and choose; write the profile and what was learned."""
        import torch

        from dit_sparse.bench.machine import facts
        from dit_sparse.media import names, part_file, publish
        from dit_sparse.profile import Profile
        from dit_sparse.quality.store import Store
        from dit_sparse.search.run import Search

        def generate(prompt: str, seed: int, **options: Any) -> Any:
            return sample(model.pipe, model.call(prompt, **options), seed)

        machine = facts(torch.device(model.pipe.device))
        total = model.arguments.get("num_inference_steps") or self.parts
        if self.parts > total:
            raise ArgumentError(f"--parts {self.parts} are more than the {total} steps")
        # rounded down: a part begins no step late
        begins = tuple(n * 10**4 // self.parts / 10**4 for n in range(1, self.parts))
        search = Search(
            model.pipe, candidates, videos, generate, Store(out.with_suffix(".jsonl")),
            model.facts(request), machine, begins, min(self.checks, len(videos)),
            self.dense_start, self.sensitivity, bar.show, total,
        )  # fmt: skip
        params, learned = self._found(search)
        got = search.measured(params)
        bar.close()
        measured = {
            "device": _device(machine),
            **got,
            **learned,
            "steps": model.arguments.get("num_inference_steps"),
            **{n: v for n in ("height", "width", "num_frames") if (v := model.arguments.get(n))},
            "rule": self.rule,
            "prompts": [text for text, _ in videos],
            "versions": ", ".join(f"{n} {machine[n]}" for n in ("torch", "diffusers")
                                  if n in machine),
            "date": date.today(),
        }  # fmt: skip
        measured = {k: _short(v) for k, v in measured.items() if v is not None}
        profile = Profile(model.name, "mixed", params, measured=measured)
        texts = {".toml": profile.to_toml()}
        if self.rule == "best":
            texts[".json"] = json.dumps(search.facts(params), indent=1) + "\n"
        if self.out is None:
            # what another search found is not lost to one that nobody gave a name
            out = next(
                path
                for path in names(out)
                if all(_free(path.with_suffix(kind), text) for kind, text in texts.items())
            )
        files = [out.with_suffix(kind) for kind in texts]
        for path, text in zip(files, texts.values(), strict=True):
            with part_file(path) as part:
                part.write_text(text, "utf-8")
                publish(part, path, overwrite=True)
        rows = [
            ("likeness", f"PSNR {got['psnr']:.1f} dB against dense"),
            ("denoising", f"{got['seconds']:.2f} s, {faster(got['speedup'])} than dense"),
            ("density", f"{got['density']:.1%} of attention computed"),
            *((name, f"{value:.3f}") for name, value in learned.items()),
            ("wrote", ", ".join(map(str, files))),
            ("use it", f"dit-sparse generate PROMPT --profile {out}"),
        ]
        data = {"profile": str(out), **got, **learned, "params": params}
        self.screen.result(data, rows, files)

    def _found(self, search: Any) -> tuple[dict[str, Any], dict[str, float]]:
        """Return the parameters that the rule finds, and the attention error where it is known."""
        if self.rule == "paper":
            eps = EPS if self.eps is None else self.eps
            return search.by_paper(eps, PENALTY if self.penalty is None else self.penalty), {}
        if self.budget_psnr is not None:
            params = search.for_psnr(self.budget_psnr)
        elif self.speedup is not None:
            params = search.for_speedup(self.speedup)
        else:
            params = search.for_error(self.budget_error or ERROR)
        return params, {"error": search.problem.error(search.choice(params))}

    def _request(self) -> Request:
        """Return the generation that all videos have in common, checked."""
        at_least(1, count=self.count, checks=self.checks, parts=self.parts)
        if self.rule not in ("best", "paper"):
            raise ArgumentError(f"--rule {self.rule} is not known; use best or paper")
        budgets = {"--budget-error": self.budget_error, "--budget-psnr": self.budget_psnr,
                   "--speedup": self.speedup}  # fmt: skip
        given = [name for name, value in budgets.items() if value is not None]
        if len(given) > 1:
            raise ArgumentError(f"{given[0]} and {given[1]} are two budgets; give one of them")
        paper = {"--eps": self.eps, "--penalty": self.penalty}
        other = [
            n for n, v in (budgets if self.rule == "paper" else paper).items() if v is not None
        ]
        if other:
            raise ArgumentError(f"{other[0]} is not used by --rule {self.rule}")
        if self.rule == "paper" and self.candidate:
            raise ArgumentError("--candidate: --rule paper has the paper's five modes")
        for name, least, value in (
            ("--budget-error", 0, self.budget_error), ("--budget-psnr", 0, self.budget_psnr),
            ("--speedup", 1, self.speedup),
        ):  # fmt: skip
            if value is not None and not least < value < math.inf:
                raise ArgumentError(f"{name} {value:g} must be above {least}")
        for name, value in paper.items():
            if value is not None and not value >= 0:
                raise ArgumentError(f"{name} {value:g} must be 0 or more")
        return Request.of(self, out=Path.cwd())

    def _candidates(self) -> Any:
        """Return what a head may get."""
        from dit_sparse.search.candidates import DEFAULT, PAPER, candidates, lettered

        if self.rule == "paper":
            return candidates(PAPER)
        # TOML wants a digit before the point
        given = [re.sub(r"=\.(?=\d)", "=0.", text) for text in self.candidate or ()]
        for text in given:
            try:
                candidates(lettered([text]))
            except DitSparseError as error:
                # nobody wrote the letter that it gets
                why = "write METHOD KEY=VALUE ..." if "LETTER" in str(error) else error
                raise ArgumentError(f"--candidate {text!r}: {why}") from error
        return candidates(lettered(given) if given else DEFAULT)


def _free(path: Path, text: str) -> bool:
    """Tell whether a file can be written without a loss: it is not there, or says the same."""
    return not path.exists() or (path.is_file() and path.read_bytes() == text.encode())


def _device(machine: dict[str, Any]) -> str:
    """Name the device, as `Profile.elsewhere` looks for it."""
    threads = machine.get("threads")
    return machine["device"] if threads is None else f"CPU, {threads} threads, {machine['device']}"


def _short(value: Any) -> Any:
    """Return a number with four digits that count, all else as it is."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
