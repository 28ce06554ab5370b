"""The search of one pipeline: measure, weigh, choose, and hold what was found against dense.

Everything that took a generation is on file when it is done, and is found again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import dit_sparse
from dit_sparse import metrics
from dit_sparse.errors import ArgumentError
from dit_sparse.integrations.diffusers import layers_of
from dit_sparse.mixed import part_of
from dit_sparse.quality.store import Store, key_of
from dit_sparse.registry import get
from dit_sparse.search.candidates import Candidate
from dit_sparse.search.choose import Problem, faster, near, within
from dit_sparse.search.effects import Effects
from dit_sparse.search.measure import PLACES, Errors, See, Times, observing
from dit_sparse.search.paper import Greedy, majority
from dit_sparse.search.progress import Progress, Tell
from dit_sparse.search.sensitivity import harm, trials

LATENT = {"output_type": "latent"}
TRIES = 4  # generations of each video on the way to a PSNR
SPARE = 0.5  # dB
MOST_DB = 100.0

Video = tuple[str, int]


@dataclass
class Search:
    """One search.

    sample: (prompt, seed, **options of the call) -> a generation with frames [F, H, W, 3] in 0..1
    and `denoising` seconds. settings, machine: what the values depend on besides. begins: shares of
    the steps at which the parts after the first begin. checks: on how many videos a found table is
    tried. hold: the first part stays dense. tell: hears of each generation, or of each layer whose
    effects are known, with the number of them and what it was. steps: of a generation, to estimate
    the time left.
    """

    pipe: Any
    candidates: tuple[Candidate, ...]
    videos: list[Video]
    sample: Callable[..., Any]
    store: Store
    settings: dict[str, Any]
    machine: dict[str, Any]
    begins: tuple[float, ...] = ()
    checks: int = 1
    hold: bool = True
    weigh: bool = True
    tell: Tell = lambda done, total, note: None
    steps: int = 1
    _plain: dict[Video, Any] = field(default_factory=dict)

    def for_error(self, budget: float) -> dict[str, Any]:
        """Return the parameters of the fastest table with at most this attention error."""
        self._expect(0)
        return self.params(within(self.problem, budget))

    def for_speedup(self, budget: float) -> dict[str, Any]:
        """Return the parameters of the most exact table that should be so many times faster."""
        self._expect(0)
        whole = self._dense(self.videos[0])["seconds"]
        attention = self.calls * self.problem.seconds(self.problem.dense())
        left = (whole / budget - (whole - attention)) / self.calls
        found = faster(self.problem, left) if left > 0 else None
        if found is None:
            least = self.problem.seconds(self.problem.at(0.0)) * self.calls
            best = whole / (whole - attention + least)
            raise ArgumentError(
                f"--speedup {budget:g} cannot be reached: what may be sparse is "
                f"{attention / whole:.0%} of a generation, and with the fastest candidates it is "
                f"{best:.2f} times faster"
            )
        return self.params(found)

    def for_psnr(self, budget: float) -> dict[str, Any]:
        """Return the parameters of the fastest table tried whose videos are so near to dense.

        The first is the one that should be; the next makes up for what that missed, and so on.
        """
        self._expect(self.checks * (TRIES - 1))
        aim, found = budget, {0: self.problem.dense()}
        for number in range(1, TRIES + 1):
            choice = near(self.problem, aim)
            if any(torch.equal(choice, other) for other in found.values()):
                break
            got = self.measured(self.params(choice))["psnr"]
            found[number if got >= budget else -number] = choice
            # a miss is made up for with something to spare, or the last try could miss by a hair
            aim += budget - got + (SPARE if got < budget else 0)
        fine = [choice for number, choice in found.items() if number >= 0]
        return self.params(min(fine, key=self.problem.seconds))

    def by_paper(self, eps: float, penalty: float) -> dict[str, Any]:
        """Return the parameters that the greedy rule of Sparse-vDiT finds, a table by steps."""
        missing = sum(self._get("greedy", v, eps, penalty) is None for v in self.videos)
        self.progress.expect((self.checks * 2 + missing, 1))
        tables = []
        for video in self.videos:
            record = self._get("greedy", video, eps, penalty)
            if record is None:
                greedy = Greedy(self.candidates, eps, penalty)
                self._observe(video, greedy, "greedy search")
                record = self._add({"table": greedy.told()}, "greedy", video, eps, penalty)
            tables.append(record["table"])
        return self._params(majority(tables, "".join(c.letter for c in self.candidates)))

    @property
    def held(self) -> int:
        """How many parts, the first ones, stay dense."""
        return int(self.hold and bool(self.begins))

    @cached_property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self.tell)

    @cached_property
    def problem(self) -> Problem:
        """What was measured, as the choice takes it."""
        records = [self._errors(video) for video in self.videos]
        times = self._times()
        every = torch.stack([self._parted(r["errors"]) for r in records]).mean(0)
        fixed, each = torch.tensor(times["seconds"], dtype=torch.float64).T
        steps = tuple(map(len, self._parts()))
        # without a measure of it, any error does the same
        harmful = every / (sum(steps) * every.shape[1])
        if self.weigh:
            effects = torch.tensor([self._effects(v) for v in self.videos], dtype=torch.float64)
            effects = effects.log().mean(0).exp()
            lost = [[self._lost(v, c) for c in trials(effects)] for v in self.videos]
            harmful = harm(every, effects, steps, torch.tensor(lost, dtype=torch.float64))
        return Problem(every, harmful, steps, fixed, each, times["split"])

    @property
    def calls(self) -> int:
        """Calls of a layer at a step: one for each CFG branch."""
        return self._errors(self.videos[0])["calls"]

    def params(self, choice: Tensor) -> dict[str, Any]:
        """Return the parameters of `mixed` for a choice [P, L, H] of the parts that are not held;
        equal neighbours are joined."""
        letters = [c.letter for c in self.candidates]
        choice = torch.cat([torch.zeros_like(choice[:1])] * self.held + [choice])
        rows = [["".join(letters[n] for n in heads) for heads in part] for part in choice.tolist()]
        return self._params(rows, self.begins)

    def choice(self, params: dict[str, Any]) -> Tensor:
        """Return the choice [P, L, H] of parameters that `params` gave."""
        heads = get("mixed", **params).compute.heads  # type: ignore[attr-defined]
        problem, letters = self.problem, [c.letter for c in self.candidates]
        steps, (_, layers, count, _) = self._parts()[-1][-1] + 1, problem.errors.shape
        return torch.tensor([
            [[letters.index(c) for c in heads.row(n, part[0], steps, count)] for n in range(layers)]
            for part in self._parts()
        ])  # fmt: skip

    def measured(self, params: dict[str, Any]) -> dict[str, float]:
        """Return what a table gives on the first videos: psnr, seconds, speedup, density."""
        found = []
        for video in self.videos[: self.checks]:
            record = self._get("table", video, params)
            if record is None:
                run, psnr = self._tried(video, params, "table tried")
                density = dit_sparse.report(self.pipe).density
                record = {"psnr": psnr, "seconds": run.denoising, "density": density}
                self._add(record, "table", video, params)
            dense = self._dense(video)["seconds"]
            found.append({**record, "speedup": dense / record["seconds"]})
        return {k: fmean(f[k] for f in found) for k in ("psnr", "seconds", "speedup", "density")}

    def facts(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return what the search learned, by part, layer and head, for a file beside the profile.

        alike: the share of the heads that every single video would give the letter with the same
        best trade, over videos and over parts.
        """
        problem, choice = self.problem, self.choice(params)
        parts = [self._parted(self._errors(v)["errors"]) for v in self.videos]
        # the trade at which the mean head is indifferent between dense and half the error
        price = float(problem.each[0]) / max(1e-12, float(problem.errors[..., 1:].median()))
        best = [(problem.each + price * e).argmin(-1) for e in parts]
        over_videos = fmean(float((b == best[0]).double().mean()) for b in best)
        over_parts = fmean(float((b == b[:1]).double().mean()) for b in best)
        return {
            "params": params,
            "candidates": [c.text for c in self.candidates],
            "seconds": [[float(a), float(b)] for a, b in zip(problem.fixed, problem.each,
                                                             strict=True)],
            "errors": problem.errors.tolist(),
            "harm": problem.harm.tolist(),
            "split": problem.split,
            "error": problem.error(choice),
            "predicted_psnr": problem.psnr(choice),
            "alike": {"videos": over_videos, "parts": over_parts},
        }  # fmt: skip

    def _lost(self, video: Video, choice: Tensor) -> float:
        """Return the mean squared difference of a video with a choice [P, L] from the dense one."""
        heads = len(self._errors(video)["errors"][0][0])
        params = self.params(choice[..., None].expand(-1, -1, heads))
        record = self._get("trial", video, params)
        if record is None:
            _, psnr = self._tried(video, params, "sensitivity")
            record = self._add({"psnr": psnr}, "trial", video, params)
        return 10 ** (-record["psnr"] / 10)

    def _tried(self, video: Video, params: dict[str, Any], note: str) -> tuple[Any, float]:
        """Generate a video with a table; returns the generation and its PSNR against dense."""
        plain = self._frames(video)
        dit_sparse.enable(self.pipe, get("mixed", **params))
        run = self._sample(video, note)
        return run, min(MOST_DB, metrics.psnr(run.frames, plain))

    def _effects(self, video: Video) -> list[list[list[float]]]:
        """Return what each candidate in each layer does to the prediction, [P, L, C]: at one step
        in the middle of each part."""
        missing = self._missing(video)
        if missing:

            def known(step: int, found: list[list[float]]) -> None:
                self._add({"effects": found}, "effects", video, step)

            asked = partial(self.progress.did, self.asking, "effects")
            effects = Effects(self.candidates, missing, known, asked)
            self._observe(video, effects, "effects", within=effects.asking(self.pipe))
        if unasked := sorted(self._missing(video)):
            raise ArgumentError(
                f"the model could not be asked at steps {unasked}: its transformer was not called "
                "there, or compiled as a whole; --alike needs no effects"
            )
        keys = [self._key("effects", video, n) for n in self._places]
        return [self.store.records[key]["effects"] for key in keys]

    @property
    def _places(self) -> list[int]:
        """The steps in the middle of the parts."""
        return [steps[len(steps) // 2] for steps in self._parts()]

    def _missing(self, video: Video) -> frozenset[int]:
        """Return the steps whose effects are not on file."""
        return frozenset(n for n in self._places if self._get("effects", video, n) is None)

    def _errors(self, video: Video) -> dict[str, Any]:
        """Return the errors of all candidates on a video."""
        record = self._get("errors", video)
        if record is None:
            errors, calls = Errors(self.candidates), [0]

            def see(x: Any, ctx: Any, out: Tensor) -> Tensor:
                calls[0] += ctx.step == 0 and ctx.layer == 0
                return errors(x, ctx, out)

            self._observe(video, see, "errors", work=self.trying)
            record = self._add({**errors.told(), "calls": max(1, calls[0])}, "errors", video)
        return record

    def _times(self) -> dict[str, Any]:
        """Return the time of all candidates, measured at a few layers."""
        record = self._get("times")
        if record is None:
            errors = self._errors(self.videos[0])["errors"]
            last = len(errors[0]) - 1
            places = tuple(sorted({n * last // (PLACES - 1) for n in range(PLACES)}))
            times = Times(self.candidates, places, len(errors))
            self._observe(self.videos[0], times, "times", num_inference_steps=1)
            record = self._add(times.told(), "times")
        return record

    def _dense(self, video: Video) -> dict[str, Any]:
        """Return the seconds of a dense generation."""
        if self._get("dense", video) is None:
            self._frames(video)
        return self.store.records[self._key("dense", video)]

    def _frames(self, video: Video) -> Any:
        """Return a dense video [F, H, W, 3]; those of two videos at most are kept."""
        if video not in self._plain:
            dit_sparse.disable(self.pipe)
            run = self._sample(video, "dense")
            while len(self._plain) > 1:
                self._plain.pop(next(iter(self._plain)))
            self._plain[video] = run.frames
            if self._get("dense", video) is None:
                self._add({"seconds": run.denoising}, "dense", video)
        return self._plain[video]

    def _observe(
        self, video: Video, see: See, note: str, work: float = 1,
        within: AbstractContextManager[None] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        """Generate a video under an observer that stands in for the attention."""
        dit_sparse.enable(self.pipe, observing(see))
        with within or nullcontext():
            self._sample(video, note, work, **LATENT, **options)

    def _sample(self, video: Video, note: str, work: float = 1, **options: Any) -> Any:
        """Generate a video, leave the model dense, and tell; work: in dense generations."""
        try:
            run = self.sample(*video, **options)
        finally:
            dit_sparse.disable(self.pipe)
        self.progress.did(work, note)
        return run

    def _expect(self, more: int) -> None:
        """Count what is to come, `more` generations at its end."""
        new = sum(self._get("errors", video) is None for video in self.videos)
        # a dense video is made again, for its frames
        generations = more + self.checks + (self._get("times") is None) + len(self.videos)
        asked = 0
        for video in self.videos if self.weigh else ():
            parts = range(self.held, len(self.begins) + 1)
            places = parts if new else self._missing(video)
            if places:
                generations += 1 + len(parts)
                asked += len(places) * layers_of(self.pipe)
        self.progress.expect((generations, 1), (new, self.trying), (asked, self.asking))

    @property
    def trying(self) -> float:
        """What a generation costs in which every call tries all candidates, in dense ones, where
        attention is about a third."""
        return 1 + (len(self.candidates) - 1) / 3

    @property
    def asking(self) -> float:
        """What the effects of a layer cost, in generations, where each step has two calls."""
        return (len(self.candidates) - 1) / (2 * self.steps)

    def _parts(self) -> list[list[int]]:
        """Return the steps of each part that is not held."""
        steps = range(len(self._errors(self.videos[0])["errors"]))
        part = [part_of(step, len(steps), self.begins) for step in steps]
        parts = [[n for n in steps if part[n] == p] for p in range(len(self.begins) + 1)]
        if not all(parts):
            raise ArgumentError(f"--parts {len(parts)} are too many for {len(steps)} steps")
        return parts[self.held :]

    def _parted(self, errors: list[Any]) -> Tensor:
        """Return the mean errors of the steps of each part, [P, L, H, C] float64."""
        every = torch.tensor(errors, dtype=torch.float64)
        return torch.stack([every[steps].mean(0) for steps in self._parts()])

    def _params(self, tables: list[list[str]], begins: tuple[float, ...] = ()) -> dict[str, Any]:
        """Return parameters of `mixed` from tables by part; without begins, by equal parts."""
        begins = begins or tuple(n / len(tables) for n in range(1, len(tables)))
        kept = [0, *(n for n in range(1, len(tables)) if tables[n] != tables[n - 1])]
        used = set("".join("".join(rows) for rows in tables))
        letters = [c.text for c in self.candidates if c.letter in used]
        if len(kept) == 1:
            return {"letters": letters, "table": tables[0]}
        rows = [tables[n] for n in kept]
        return {"letters": letters, "begins": [begins[n - 1] for n in kept[1:]], "table": rows}

    def _key(self, *parts: Any) -> str:
        texts = [c.text for c in self.candidates]
        return key_of(self.settings, self.machine, texts, parts)

    def _get(self, *parts: Any) -> dict[str, Any] | None:
        return self.store.get(self._key(*parts))

    def _add(self, record: dict[str, Any], *parts: Any) -> dict[str, Any]:
        self.store.add(self._key(*parts), {"what": parts[0], **record})
        return record
