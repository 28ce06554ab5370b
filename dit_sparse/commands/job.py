"""From a checked request to files and a summary."""

from __future__ import annotations

import inspect
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_sparse.commands.attention import Choice, choose, default, saved
from dit_sparse.commands.model import (
    Geometry,
    Trained,
    compile_parts,
    device_of,
    go_offline_without_network,
    load,
    locate,
)
from dit_sparse.commands.picture import needed, taking
from dit_sparse.commands.picture import place as place_picture
from dit_sparse.commands.request import Request, beside
from dit_sparse.commands.screen import Screen, hushed
from dit_sparse.errors import ArgumentError

# what a request calls an argument of a pipeline
NAMES = {
    "height": "height",
    "width": "width",
    "frames": "num_frames",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "negative": "negative_prompt",
}
FPS = 16  # what most video models were trained at


@dataclass
class Job:
    """Everything one `generate` needs once the model is there."""

    request: Request
    screen: Screen
    pipe: Any
    trained: Trained
    geometry: Geometry
    arguments: dict[str, Any]  # of the pipeline call
    choice: Choice
    loading: float  # seconds
    writes: bool = True  # whether this process writes and talks

    @property
    def size(self) -> tuple[int | None, int | None, int | None]:
        """Frames, height and width of the result; None where only the pipeline knows."""
        return size(self.arguments)

    @property
    def fps(self) -> float:
        """Frames per second of the file."""
        return self.request.fps or self.trained.fps or FPS

    @property
    def tokens(self) -> int | None:
        """Video tokens of one attention call."""
        return tokens(self.geometry, self.arguments)


def size(arguments: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
    """Return frames, height and width of a pipeline call; None where only the pipeline knows."""
    return arguments.get("num_frames", 1), arguments.get("height"), arguments.get("width")


def tokens(geometry: Geometry, arguments: dict[str, Any]) -> int | None:
    """Return the video tokens of one attention call, None where only the pipeline knows."""
    frames, height, width = size(arguments)
    return geometry.tokens(frames or 1, height, width) if height and width else None


def run(request: Request) -> None:
    """Do all that `generate` was asked for; under `torchrun` the processes share the sequence."""
    from dit_sparse.integrations.processes import leave, meet, started

    processes = started()
    screen = Screen(request.quiet or not processes.first, request.json)
    with hushed(request.debug):
        try:
            job = prepare(request, screen, processes)
            from dit_sparse.commands.results import compare, single

            (compare if request.compare else single)(job)
            meet()
        finally:
            leave()


def prepare(request: Request, screen: Screen, processes: Any = None, pipe: Any = None) -> Job:
    """Load the model and check the request against it.

    processes: those that share the sequence, `Processes`; None or one alone: no sharing. pipe: the
    model where it is there already, dense.
    """
    # a wrong method or parameter shows before a model is loaded
    choose(request, request.model)
    place, trained, asked = checked(request)
    if isinstance(place, str):
        go_offline_without_network()
    warn_of_words(request.prompt, trained, screen)
    if processes is not None and processes.ranks > 1:
        from dit_sparse.integrations.processes import join

        request = replace(request, device=str(join(device_of(request.device))))
    start = time.perf_counter()
    if pipe is None:
        screen.say(f"loading {request.model}")
        pipe = load(request, place)
    loading = time.perf_counter() - start
    needed(pipe, request)
    pipe = pipe if request.image is None else taking(pipe)
    geometry = Geometry.of(pipe)
    arguments = call_arguments(pipe, request, trained, asked)
    arguments = place_picture(arguments, pipe, request, trained, geometry)
    trained.check(arguments)
    geometry.check(arguments)
    if processes is not None and processes.ranks > 1:
        from dit_sparse.integrations.processes import share

        share(pipe, processes, pipe.device)
    from dit_sparse.integrations.diffusers import device_name, model_name

    name = model_name(pipe) or request.model
    choice = choose(request, name) or saved(place)
    choice = choice or default(tokens(geometry, arguments), name, request.quant)
    if choice.name == "dense" and (request.quant != "none" or request.guard is not None):
        screen.warn("--quant and --guard are for sparse attention; this run is dense")
    elsewhere = choice.profile and choice.profile.elsewhere(device_name(pipe.transformer))
    if elsewhere:
        screen.warn(elsewhere)
    writes = processes is None or processes.first
    job = Job(request, screen, pipe, trained, geometry, arguments, choice, loading, writes)
    target(job)
    attach(job, choice)
    if request.compile:
        compile_parts(pipe)
    return job


def checked(request: Request) -> tuple[Path | str, Trained, dict[str, Any]]:
    """Return the model's place, what it was trained for, and the arguments that were asked for.

    Raises where the request cannot work, as far as no model is needed to know.
    """
    place = locate(request.model)
    device_of(request.device)
    trained = Trained.read(place)
    asked = {NAMES[k]: v for k in NAMES if (v := getattr(request, k)) is not None}
    if request.image is None:
        # a picture has a say in the size
        trained.check({**trained.default, **asked})
    return place, trained, asked


def warn_of_words(prompt: str, trained: Trained, screen: Screen) -> None:
    """Say which words of a prompt the model was never trained on."""
    unknown = trained.unknown_words(prompt)
    if unknown:
        words = [f"{word} (nearest: {near})" if near else word for word, near in unknown.items()]
        screen.warn(f"the model has never read: {', '.join(words)}")


def attach(job: Job, choice: Choice | None) -> None:
    """Enable a method on the job's pipeline as the request asks for it; None: dense."""
    import dit_sparse

    if choice is None or choice.name == "dense":
        dit_sparse.disable(job.pipe)
    else:
        asked = job.request
        dit_sparse.enable(job.pipe, choice.value, quant=asked.quant, guard=asked.guard)


def call_arguments(
    pipe: Any, request: Request, trained: Trained, asked: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of the pipeline call: asked for, else trained, else the pipeline's."""
    known = inspect.signature(pipe.__call__).parameters
    for option, name in NAMES.items():
        if name in asked and name not in known:
            if name == "num_frames" and asked[name] == 1:
                continue
            raise ArgumentError(f"--{option} does not apply to {type(pipe).__name__}")
    chosen = {**trained.default, **asked}
    # written out, so that the summary and the token count know them
    for name in ("height", "width", "num_frames", "num_inference_steps", "guidance_scale"):
        if name in known and chosen.get(name) is None and known[name].default is not None:
            chosen[name] = known[name].default
    side = getattr(pipe, "default_sample_size", None)
    for name in ("height", "width"):
        if chosen.get(name) is None and isinstance(side, int):
            chosen[name] = side * pipe.vae_scale_factor
    kept = {k: v for k, v in chosen.items() if k in known and v is not None}
    return {"prompt": request.prompt, **kept, "output_type": "np"}


def target(job: Job) -> tuple[Path, bool]:
    """Return the file to write and whether it may replace one; checks that the format fits."""
    request, frames = job.request, job.size[0] or 1
    out = request.out
    if out is None or out.is_dir():
        suffix = ".png" if frames == 1 else ".mp4"
        return (out or Path()) / (file_name(request.prompt) + suffix), False
    still = out.suffix.lower() == ".png"
    if still and frames > 1:
        raise ArgumentError(
            f"--out {out}: .png holds one frame and this is a video of {frames}; "
            "use .mp4, .gif or .webp"
        )
    if not still and not job.geometry.video:
        raise ArgumentError(f"--out {out}: {type(job.pipe).__name__} makes images; use .png")
    return out, True


def file_name(prompt: str, limit: int = 60) -> str:
    """Make a readable file name of a prompt: its words joined by hyphens."""
    words = re.findall(r"\w+", prompt.lower())
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word
        if len(longer.encode()) > limit:
            break
        name = longer
    return name or "video"


def names_of(job: Job) -> tuple[Path, Path | None, bool]:
    """Return the file, the side-by-side file if any, and whether they may replace others."""
    from dit_sparse.media import names

    path, replaces = target(job)
    if not job.request.compare:
        return path, None, replaces
    if not replaces:
        # both names free: the pair must stay recognisable
        path = next(p for p in names(path) if not p.exists() and not beside(p).exists())
    return path, beside(path), replaces
