"""Generate dense and with every case, video by video, and measure all there is to measure.

For each prompt and seed the dense video comes first and stays in memory until every case was set
against it: whenever a run stops, all cases have the same videos behind them. A generation that is
timed is not looked into; attention is measured in another one from the same noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import dit_sparse
from dit_sparse import metrics
from dit_sparse.errors import ArgumentError
from dit_sparse.quality import lpips
from dit_sparse.quality.budget import calibrate, sparse_density
from dit_sparse.quality.cases import DENSE, Case, Claim, check_labels
from dit_sparse.quality.intervals import Video
from dit_sparse.quality.probe import ROWS, Ledger
from dit_sparse.quality.results import MOST_DB, Result, Row
from dit_sparse.quality.store import Store, contents, key_of
from dit_sparse.quality.watch import watching
from dit_sparse.reporting import Report
from dit_sparse.schedule import Schedule

LATENT = {"output_type": "latent"}
CALIBRATION = {**LATENT, "num_inference_steps": 4}


class Generation(Protocol):
    """What a generation gave: frames [F, H, W, 3] in 0..1, and the seconds of all its steps."""

    frames: Any

    @property
    def denoising(self) -> float: ...


class Hooks:
    """What a run asks of its surroundings; each has a default."""

    def judge(self, frames: Any, prompt: str) -> dict[str, float]:
        """Return further values of a video [F, H, W, 3], for models that have such."""
        return {}

    def save(self, label: str, video: Video, frames: Any) -> None:
        """Keep a video."""

    def saved(self, label: str, video: Video) -> bool:
        """Tell whether a video is kept already, or need not be."""
        return True

    def tell(self, done: int, total: int, note: str) -> None:
        """Hear of each generation of this run that is done."""

    def stop(self) -> bool:
        """Tell whether nothing new should be started."""
        return False


@dataclass
class Evaluation:
    """One evaluation of a pipeline.

    sample: (prompt, seed, **options of the call) -> generation. settings, machine: all that the
    values depend on besides case and video. probes: on how many videos attention is measured, by
    `rows` query rows of each call. After `run`, `failed` tells which cases could not be measured
    and why.
    """

    pipe: Any
    cases: list[Case]
    videos: list[Video]
    sample: Callable[..., Generation]
    store: Store
    settings: dict[str, Any]
    machine: dict[str, Any]
    claims: list[Claim] = field(default_factory=list)
    probes: int = 2
    rows: int = ROWS
    hooks: Hooks = field(default_factory=Hooks)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_labels(self.cases)
        self.what = {case.label: _what(case) for case in self.cases}
        self.warm: set[str] = set()
        self.took: dict[str, list[float]] = {}

    def run(self) -> None:
        """Measure what is not on file yet; leaves the pipeline dense."""
        todo = [(video, [c for c in self.cases if self._todo(c, video)]) for video in self.videos]
        self.plan = [
            (video, label)
            for video, cases in todo
            if cases or self._missing(DENSE, video)
            for label in (DENSE, *(case.label for case in cases))
        ]
        self.total = len(self.plan)
        cases = {case.label: case for case in self.cases}
        plain = None
        try:
            while self.plan and not self.hooks.stop():
                video, label = self.plan.pop(0)
                begin = time.monotonic()
                if label == DENSE:
                    plain = None  # the last one goes before the next one comes
                    plain = self._dense(video)
                else:
                    self._try(cases[label], video, plain)
                self._tell(label, time.monotonic() - begin)
        finally:
            dit_sparse.disable(self.pipe)

    def result(self) -> Result:
        """Return what is on file for these settings."""
        labels = [DENSE, *(case.label for case in self.cases)]
        measured = [n for n in labels if any(self._found(n, v) for v in self.videos)]
        # the same videos for every case, so that their means can be compared
        common = [v for v in self.videos if all(self._found(n, v) for n in measured)]
        videos = common or [v for v in self.videos if self._found(DENSE, v)]
        rows = [self._row(DENSE, videos, {"method": DENSE})]
        rows += [self._row(case.label, videos, self._facts(case)) for case in self.cases]
        return Result(self.settings, self.machine, videos, rows, self.claims, self.failed)

    def _dense(self, video: Video) -> Any:
        """Generate a dense video and return its frames; its values are measured once."""
        dit_sparse.disable(self.pipe)
        self._warm_up(DENSE, video)
        run = self.sample(*video)
        if self._missing(DENSE, video):
            self._keep(DENSE, video, run, self._values(run, None, video))
        return run.frames

    def _try(self, case: Case, video: Video, plain: Any) -> None:
        """Measure a case on a video; one that cannot run must not cost the others."""
        try:
            self._case(case, video, plain)
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            self.failed[case.label] = text or type(error).__name__
            lost = [place for place in self.plan if place[1] == case.label]
            self.plan = [place for place in self.plan if place[1] != case.label]
            self.total -= len(lost)

    def _case(self, case: Case, video: Video, plain: Any) -> None:
        """Generate a video with a case, timed, and measure it; then look into its attention."""
        label, method = case.label, case.build(self._budget(case))
        if self._missing(label, video):
            dit_sparse.enable(self.pipe, method.with_schedule(Schedule()))
            self._warm_up(label, video)
            dit_sparse.enable(self.pipe, method)
            run = self.sample(*video)
            report = self._report()
            values = self._values(run, plain, video)
            values |= {"density": sparse_density(report), "density_all": report.density}
            self._keep(label, video, run, values)
        if self._unprobed(label, video):
            dit_sparse.enable(self.pipe, method)
            ledger = Ledger(self.rows)
            with watching(self.pipe, ledger):
                self.sample(*video, **LATENT)
            record = {"case": label, "values": ledger.means(), "layers": ledger.layers()}
            self.store.add(self._key(label, video, "probe", self.rows), record)

    def _report(self) -> Report:
        """Return the report of the generation that just ran; raise if no call of it was sparse."""
        report = dit_sparse.report(self.pipe)
        if not report.sparse_calls:
            why = next(iter(report.reasons), "no self-attention call arrived")
            raise ArgumentError(f"every call was dense: {why}")
        return report

    def _warm_up(self, label: str, video: Video) -> None:
        """Run one step untimed where it is the first: start-up costs belong to no case."""
        if label not in self.warm:
            try:
                self.sample(*video, **LATENT, num_inference_steps=1)
            except ArgumentError:
                # a method may serve one number of steps only
                self.sample(*video, **LATENT)
            self.warm.add(label)

    def _values(self, run: Generation, plain: Any, video: Video) -> dict[str, float]:
        """Return what can be measured on a video, and against the dense one where there is one."""
        frames, values = run.frames, {"seconds": run.denoising}
        side = min(frames.shape[1:3])
        if plain is not None:
            values["psnr"] = min(metrics.psnr(frames, plain), MOST_DB)
            if side >= metrics.SMALLEST:
                values["ssim"] = metrics.ssim(frames, plain)
            if side >= lpips.SMALLEST and not lpips.missing():
                values["lpips"] = lpips.lpips(frames, plain)
        if len(frames) > 1:
            values["flicker"] = metrics.flicker(frames)
            if side >= metrics.SMALLEST_FLOW:
                values["warped_error"] = metrics.warped_error(frames)
        values |= self.hooks.judge(frames, video[0])
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _keep(self, label: str, video: Video, run: Generation, values: dict[str, float]) -> None:
        """Put a measured generation on file, after its video where videos are kept."""
        self.hooks.save(label, video, run.frames)
        prompt, seed = video
        record = {"case": label, "prompt": prompt, "seed": seed, "values": values}
        self.store.add(self._key(label, video), record)

    def _budget(self, case: Case) -> float | None:
        """Return a case's budget where it has a target density, found on the first video."""
        if case.target is None:
            return None
        video = self.videos[0]
        key = self._key(case.label, video, "budget")
        if self.store.get(key) is None:

            def measure(keep: float) -> float:
                # so few steps would all be dense where the schedule counts its dense ones
                method = case.build(keep)
                always = method.with_schedule(replace(method.schedule, dense_steps=0))
                dit_sparse.enable(self.pipe, always)
                try:
                    self.sample(*video, **CALIBRATION)
                except ArgumentError:
                    self.sample(*video, **LATENT)
                return sparse_density(self._report())

            found = calibrate(case.target, measure)
            self.store.add(key, {"case": case.label, **found._asdict()})
        return self.store.records[key]["keep"]

    def _row(self, label: str, videos: list[Video], facts: dict[str, Any]) -> Row:
        """Return what is on file for one case."""
        row, probes = Row(label, facts), []
        for video in videos:
            records = [self._found(label, video), self._found(label, video, "probe", self.rows)]
            for record in filter(None, records):
                for metric, value in record["values"].items():
                    row.values.setdefault(metric, {})[video] = value
                probes += [record["layers"]] if "layers" in record else []
        for part, layers in (probes[0] if probes else {}).items():
            row.layers[part] = {
                layer: {key: sum(p[part][layer][key] for p in probes) / len(probes) for key in told}
                for layer, told in layers.items()
            }
        return row

    def _facts(self, case: Case) -> dict[str, Any]:
        """Return a case as plain data, with the budget that was found for it."""
        facts = {**asdict(case), "series": case.series}
        if case.target is not None:
            record = self._found(case.label, self.videos[0], "budget")
            facts["keep"] = record["keep"] if record else None
        del facts["label"]
        return {key: value for key, value in facts.items() if value not in (None, "", {})}

    def _key(self, label: str, video: Video, *more: Any) -> str:
        """Return the key of a record: all that its values depend on."""
        return key_of(self.settings, self.machine, self.what.get(label), video, *more)

    def _found(self, label: str, video: Video, *more: Any) -> dict[str, Any] | None:
        return self.store.get(self._key(label, video, *more))

    def _missing(self, label: str, video: Video) -> bool:
        """Tell whether a video has still to be measured, or to be kept."""
        return self._found(label, video) is None or not self.hooks.saved(label, video)

    def _unprobed(self, label: str, video: Video) -> bool:
        """Tell whether attention has still to be measured on a video."""
        wanted = video in self.videos[: self.probes]
        return wanted and self._found(label, video, "probe", self.rows) is None

    def _todo(self, case: Case, video: Video) -> bool:
        """Tell whether a case has anything left to do on a video."""
        return self._missing(case.label, video) or self._unprobed(case.label, video)

    def _tell(self, label: str, seconds: float) -> None:
        """Report a generation, with the time that the rest will take as far as one can know."""
        self.took.setdefault(label, []).append(seconds)
        every = [t for times in self.took.values() for t in times]

        def usual(label: str) -> float:
            times = self.took.get(label, every)
            return sum(times) / len(times)

        left = sum(usual(label) for _, label in self.plan)
        note = f"{label}  {seconds:.1f} s, about {_span(left)} left" if self.plan else label
        self.hooks.tell(self.total - len(self.plan), self.total, note)


def _what(case: Case) -> tuple[Any, ...]:
    """Return what the values of a case depend on: its method, target and learned tensors."""
    method = case.build()
    learned = [contents(method.weights)] if method.weights else []
    return (repr(method), case.target, *learned)


def _span(seconds: float) -> str:
    """Write a time as a person would."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
