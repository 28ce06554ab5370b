"""A dense and a sparse generation of one request, as files and numbers for the page."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from dit_sparse import media
from dit_sparse.commands import recipe
from dit_sparse.commands.job import file_name
from dit_sparse.commands.model import Geometry
from dit_sparse.commands.preview import Preview
from dit_sparse.commands.request import Request
from dit_sparse.commands.results import both, steady
from dit_sparse.commands.sampling import Run
from dit_sparse.demos.runner import Page, Runner, Turn
from dit_sparse.inspection.difference import difference
from dit_sparse.integrations.gain import told
from dit_sparse.metrics import SMALLEST, psnr, ssim


@dataclass(frozen=True)
class Comparison:
    """What the page shows of two generations.

    request: that made them. label: of the method, with its settings. files: of dense, sparse and
    difference. shape: frames, height, width. psnr, ssim: of sparse against dense; ssim is None of
    videos that are too small. densities: of each step, 1 = dense. seconds: of all denoising steps,
    dense and sparse, whose ratio is the speedup. steady: whether those can be trusted.
    """

    request: Request
    label: str
    files: tuple[Path, Path, Path]
    shape: tuple[int, int, int]
    fps: float
    tokens: int | None
    psnr: float
    ssim: float | None
    density: float
    densities: tuple[float, ...]
    seconds: tuple[float, float]
    speedup: float
    steady: bool
    notes: tuple[str, ...]
    command: str
    python: str


def compare(runner: Runner, request: Request, turn: Turn) -> Comparison:
    """Generate dense and sparse, telling each step, and write files into the folder `request.out`.

    The request of the result names the sparse file.
    """
    page = Page(turn, runs=2)
    assert request.out is not None
    moves = Geometry.of(runner.pipe(request, page)).video and request.frames != 1
    suffix = ".mp4" if moves else ".png"
    out = request.out / (file_name(request.prompt) + suffix)
    request = replace(request, out=out)
    job = runner.job(request, page)
    preview = Preview(job.pipe)
    # the recipe is for the plain call
    script = recipe.python(job, out.name)
    job.arguments.update(preview.arguments)
    page.picture = preview.picture if preview.arguments else None
    dense, sparse = both(job)
    page.say("comparing and writing")
    beside = [out.with_stem(f"{out.stem}_{x}") for x in ("dense", "difference")]
    files = beside[0], out, beside[1]
    frames = dense.frames, sparse.frames, difference(dense.frames, sparse.frames)
    for file, video in zip(files, frames, strict=True):
        media.write(file, video, job.fps)
        turn.check()
    count, height, width = sparse.frames.shape[:3]
    return Comparison(
        request=request,
        label=job.choice.label,
        files=files,
        shape=(count, height, width),
        fps=job.fps,
        tokens=job.tokens,
        psnr=psnr(sparse.frames, dense.frames),
        ssim=ssim(sparse.frames, dense.frames) if min(height, width) >= SMALLEST else None,
        density=sparse.density,
        densities=by_step(sparse),
        seconds=(dense.denoising, sparse.denoising),
        speedup=dense.denoising / sparse.denoising if sparse.denoising else math.nan,
        steady=steady(dense, sparse),
        notes=tuple(notes(sparse)),
        command=recipe.command(replace(request, out=Path(out.name))),
        python=script,
    )


def by_step(run: Run) -> tuple[float, ...]:
    """Return the density of each step of a sparse run: the mean over its calls."""
    cells = run.report.cells
    at = sorted({cell.step for cell in cells})
    parts = [tuple(cell for cell in cells if cell.step == step) for step in at]
    return tuple(replace(run.report, cells=part).density for part in parts)


def notes(run: Run) -> list[str]:
    """Return what there is to gain, what stayed dense and why, and what the report adds."""
    report = run.report
    gain = [] if report.share is None else [told(report.share)]
    kept = [f"{count} calls stayed dense: {why}" for why, count in report.reasons.items()]
    return [*gain, *kept, *report.notes]
