"""From the arguments of `inspect` to pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_sparse.commands.attention import Choice, choose
from dit_sparse.commands.job import checked
from dit_sparse.commands.loading import Loaded, loaded, own_prompts
from dit_sparse.commands.request import Asked, Request, folder_for
from dit_sparse.commands.sampling import Run, sample
from dit_sparse.commands.screen import Screen, hushed
from dit_sparse.errors import ArgumentError
from dit_sparse.profile import ALL_ROUND
from dit_sparse.schedule import Schedule

LAYERS, HEADS = 4, 4  # how many are drawn when nobody says
MOST = 400  # pictures: the page holds them all


@dataclass
class Order(Asked):
    """The arguments of `inspect`; None = a default."""

    everywhere: bool
    layer: str | None
    head: str | None
    step: str | None
    patch: list[str] | None
    steps: int | None
    frames: int | None
    height: int | None
    width: int | None
    guidance: float | None
    seed: int
    out: Path | None
    quiet: bool
    json: bool
    debug: bool

    def carry_out(self) -> None:
        """Generate once, looking on, and write the pictures."""
        self.screen = Screen(self.quiet, self.json)
        request = self._request()
        places = [_numbers(getattr(self, name), f"--{name}") for name in ("layer", "head", "step")]
        patches = None if self.patch is None else tuple(map(_patch, self.patch))
        # a wrong method or parameter shows before a model is loaded
        choice = choose(request, self.model)
        assert choice is not None
        folder = folder_for(self.out or Path(f"inspect-{choice.name}"))
        checked(request)
        with hushed(self.debug):
            model = loaded(request, self.screen)
            choice = choose(request, model.name)
            assert choice is not None
            self._look(model, request, choice, places, patches, folder)

    def _look(
        self, model: Loaded, request: Request, choice: Choice, places: list[Any], patches: Any,
        folder: Path,
    ) -> None:  # fmt: skip
        """Run the pipeline under a camera."""
        import dit_sparse
        from dit_sparse.inspection import page
        from dit_sparse.inspection.capture import Camera, Where
        from dit_sparse.quality.watch import watching

        method = choice.value.with_schedule(Schedule()) if self.everywhere else choice.value
        dit_sparse.enable(model.pipe, method)
        total = model.arguments.get("num_inference_steps", 50)
        count = max(dit_sparse.report(model.pipe).layers.values())
        layers, heads, steps = places
        heads = None if heads == "all" else heads
        layers, steps = sparse_places(method.schedule, layers, steps, count, total)
        least = len(layers) * len(heads or range(1)) * len(steps)
        if least > MOST:
            raise ArgumentError(
                f"--layer, --head and --step name {least} pictures; {MOST} are the most"
            )
        default = HEADS if self.head is None else None
        camera = Camera(Where(layers, heads, steps, first=default), patches, most=MOST)
        with watching(model.pipe, camera), self.screen.steps(choice.name) as bar:
            run = sample(model.pipe, model.call(request.prompt), request.seed, bar)
        if not camera.views:
            why = next(iter(run.report.reasons), "no self-attention call arrived")
            raise RuntimeError(f"nothing to show: {why}")
        self.screen.say("drawing")
        title = f"{choice.label} on {self.model}"
        facts = f"“{request.prompt}”, seed {request.seed}, {total} steps, {model.pipe.device}"
        files = page.write(folder, camera, title, facts, run.frames)
        self._tell(camera, run, files)

    def _tell(self, camera: Any, run: Run, files: list[Path]) -> None:
        """Print where the pictures are and what the heads were like."""
        heads = [
            {"transformer": part, "layer": layer, "step": step,
             **{name: values.tolist() for name, values in reading._asdict().items()}}
            for (part, layer, step), reading in sorted(camera.readings.items())
        ]  # fmt: skip
        data = {"page": str(files[0]), "pictures": [str(f) for f in files[1:]], "heads": heads}
        worst = max(camera.views, key=lambda view: view.numbers.error)
        place = f"layer {worst.layer}, head {worst.head}, step {worst.step}"
        numbers = worst.numbers
        rows = [
            ("page", str(files[0])),
            ("pictures", f"{len(files) - 1} PNG files beside it"),
            ("density", f"{run.density:.1%} of attention computed"),
            ("largest error", f"{numbers.error:.3f} in {place}; recall {numbers.recall:.3f}"),
        ]
        self.screen.result(data, rows, files[:1])

    def _request(self) -> Request:
        """Return the generation that is looked into, checked."""
        prompt = own_prompts(self.model, 1)[0] if self.prompt is None else self.prompt
        method = self.method or (None if self.profile else ALL_ROUND)
        if method == "dense":
            raise ArgumentError("--method dense keeps everything; name a sparse method")
        request = Request.of(
            self, prompt, method=method, keep=self.keep, profile=self.profile,
            set=tuple(self.set or ()), out=Path.cwd(),
        )  # fmt: skip
        return replace(request, out=None)


def _numbers(text: str | None, option: str) -> tuple[int, ...] | str | None:
    """Return the numbers of a comma-separated list; "all" and None stay."""
    if text is None or text == "all":
        return text
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ArgumentError(f"{option} {text} must be numbers such as 0,3, or all")
    return tuple(dict.fromkeys(map(int, words)))


def _patch(text: str) -> tuple[int, int, int]:
    """Return the frame, row and column of a patch."""
    numbers = _numbers(text, "--patch")
    if not isinstance(numbers, tuple) or len(text.split(",")) != 3:
        raise ArgumentError(f"--patch {text} must be FRAME,ROW,COLUMN in tokens, e.g. 4,8,8")
    frame, row, column = (int(word) for word in text.split(","))
    return frame, row, column


def sparse_places(
    schedule: Schedule, layers: Any, steps: Any, count: int, total: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers and steps to look at, which must be there and sparse.

    layers, steps: numbers, "all" or None, some of them; count, total: of layers and steps there.
    """
    at = [[schedule.at(n, s, total) == "sparse" for s in range(total)] for n in range(count)]
    where = [n for n in range(count) if any(at[n])]
    when = [s for s in range(total) if any(row[s] for row in at)]
    if not where or not when:
        raise ArgumentError("the schedule leaves every call dense; --everywhere ignores it")
    if layers is None:
        layers = [where[i * (len(where) - 1) // max(1, LAYERS - 1)] for i in range(LAYERS)]
    if steps is None:
        steps = [when[len(when) // 2]]
    found = []
    for name, asked, there, all_ in (
        ("layer", layers, where, count), ("step", steps, when, total)
    ):  # fmt: skip
        asked = there if asked == "all" else list(dict.fromkeys(asked))
        for number in asked:
            if number >= all_:
                raise ArgumentError(f"--{name} {number} is not there: they are 0 to {all_ - 1}")
            if number not in there:
                raise ArgumentError(
                    f"--{name} {number} is dense under this schedule; --everywhere ignores it"
                )
        found.append(tuple(asked))
    return found[0], found[1]
