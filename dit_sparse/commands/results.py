"""Run the job, write its files, tell what came out."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from dit_sparse import media
from dit_sparse.commands.job import Job, attach, names_of
from dit_sparse.commands.sampling import Run, sample
from dit_sparse.errors import ArgumentError
from dit_sparse.integrations.gain import told
from dit_sparse.schedule import Schedule

UNSTEADY = "some steps took far longer than others (a busy machine?): repeat before you trust times"


def single(job: Job) -> None:
    """Generate once and write one file."""
    path, _, replaces = names_of(job)
    run = _timed(job, job.choice.name)
    if not job.writes:
        return
    path = media.write(path, run.frames, job.fps, overwrite=replaces)
    data = {**_facts(job, run, path), "compare": None}
    times = f"denoising {_s(run.denoising)} ({_s(run.step)} per step), "
    times += f"text and decoding {_s(run.seconds - run.denoising)}, loading {_s(job.loading)}"
    rows = [*_rows(job, run, path), ("time", times), *_notes(run)]
    job.screen.result(data, rows, [path])


def compare(job: Job) -> None:
    """Generate dense and sparse from the same noise and write both files."""
    path, pair, replaces = names_of(job)
    assert pair is not None
    dense, sparse = both(job)
    if not job.writes:
        return
    from dit_sparse.metrics import SMALLEST, psnr, ssim

    job.screen.say("comparing and writing")
    noise = psnr(sparse.frames, dense.frames)
    likeness = None
    if min(dense.frames.shape[1:3]) >= SMALLEST:
        likeness = ssim(sparse.frames, dense.frames)
    labels = f"dense  {_s(dense.denoising)}", f"{job.choice.label}  {_s(sparse.denoising)}"
    path = media.write(path, sparse.frames, job.fps, overwrite=replaces)
    panels = media.side_by_side(dense.frames, sparse.frames, labels)
    pair = media.write(pair, panels, job.fps, overwrite=replaces)
    ratio = dense.denoising / sparse.denoising if sparse.denoising else math.nan
    data = {
        **_facts(job, sparse, path),
        "compare": {
            "out": str(pair),
            "psnr": noise if math.isfinite(noise) else None,
            "ssim": likeness,
            "identical": not math.isfinite(noise),
            "speedup": ratio if math.isfinite(ratio) else None,
            "steady": steady(dense, sparse),
            "dense_seconds": _seconds(job, dense),
        },
    }
    rows = [
        *_rows(job, sparse, path),
        ("side by side", str(pair)),
        ("denoising", f"dense {_s(dense.denoising)}, {job.choice.name} {_s(sparse.denoising)}: "
                      f"{faster(ratio)}"),
        ("median step", f"dense {_s(dense.step)}, {job.choice.name} {_s(sparse.step)}"),
        ("likeness", _likeness(noise, likeness)),
        *([] if steady(dense, sparse) else [("note", UNSTEADY)]),
        *_notes(sparse),
    ]  # fmt: skip
    job.screen.result(data, rows, [path, pair])


def both(job: Job) -> tuple[Run, Run]:
    """Generate dense and sparse from the same noise, both warmed up; returns them in this order."""
    # each way once, one step and no decoding, untimed: start-up costs belong to neither
    job.screen.say("warming up both ways, one step each")
    at_once = replace(job.choice, value=job.choice.value.with_schedule(Schedule()))
    for choice in (None, at_once):
        attach(job, choice)
        latent = {**job.arguments, "output_type": "latent"}
        if "strength" in inspect.signature(job.pipe.__call__).parameters:
            # a share of one step would be none
            latent["strength"] = 1.0
        try:
            sample(job.pipe, {**latent, "num_inference_steps": 1}, job.request.seed)
        except ArgumentError:
            # a method may serve one number of steps only
            sample(job.pipe, latent, job.request.seed)
    attach(job, None)
    dense = _timed(job, "dense")
    attach(job, job.choice)
    sparse = _timed(job, job.choice.name)
    return dense, sparse


def steady(dense: Run, sparse: Run) -> bool:
    """Tell whether the times can be trusted: no step took twice the usual time."""
    usual = max(dense.step, sparse.step)
    return max([*dense.steps, *sparse.steps]) <= 2 * usual


def _timed(job: Job, label: str) -> Run:
    with job.screen.steps(label) as bar:
        return sample(job.pipe, job.arguments, job.request.seed, bar)


def _facts(job: Job, run: Run, path: Path) -> dict[str, Any]:
    """Return what --json tells of a run."""
    frames, height, width = run.frames.shape[:3]
    pipe, choice = job.pipe, job.choice
    report = run.report
    return {
        "out": str(path),
        "prompt": job.request.prompt,
        "image": None if job.request.image is None else str(job.request.image),
        "model": job.request.model,
        "pipeline": type(pipe).__name__,
        "method": choice.name,
        "params": {k: list(v) if isinstance(v, tuple) else v for k, v in choice.params.items()},
        "reason": choice.reason or None,
        "density": run.density,
        "attention_share": report.share if report is not None else None,
        "dense_calls": dict(report.reasons) if report is not None else {},
        "implementations": dict(report.implementations) if report is not None else {},
        "frames": frames,
        "height": height,
        "width": width,
        "fps": job.fps if job.geometry.video else None,
        "tokens": job.tokens,
        "steps": len(run.steps),
        "guidance": job.arguments.get("guidance_scale"),
        "seed": job.request.seed,
        "device": str(pipe.device),
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "seconds": {"load": round(job.loading, 4), **_seconds(job, run)},
    }


def _seconds(job: Job, run: Run) -> dict[str, float]:
    rest = run.seconds - run.denoising
    times = {"denoise": run.denoising, "step": run.step, "text_and_decode": rest}
    return {name: round(value, 4) for name, value in times.items()}


def _rows(job: Job, run: Run, path: Path) -> list[tuple[str, str]]:
    """Return the first rows of the summary."""
    frames, height, width = run.frames.shape[:3]
    kind = "video" if job.geometry.video else "image"
    length = f"{frames} frames, {frames / job.fps:.1f} s, " if frames > 1 else ""
    tokens = f", {job.tokens:,} tokens" if job.tokens else ""
    guidance = job.arguments.get("guidance_scale")
    asked = "" if guidance is None else f", guidance {guidance:g}"
    reason = f"  ({job.choice.reason})" if job.choice.reason else ""
    dtype = str(job.pipe.transformer.dtype).removeprefix("torch.")
    return [
        (kind, str(path)),
        ("size", f"{length}{height} x {width} (height x width){tokens}"),
        ("model", f"{job.request.model}, {len(run.steps)} steps{asked}, seed {job.request.seed}, "
                  f"{job.pipe.device} {dtype}"),
        ("method", job.choice.label + reason),
        ("density", f"{run.density:.1%} of attention computed"),
    ]  # fmt: skip


def _notes(run: Run) -> list[tuple[str, str]]:
    """Say which calls stayed dense and why: sparse attention must not be silently off."""
    if run.report is None:
        return []
    at_stake = run.report.share
    stake = [] if at_stake is None else [("at stake", told(at_stake))]
    dense = [(f"{count} calls: {why}") for why, count in run.report.reasons.items()]
    rows = [("kept dense" if i == 0 else "", text) for i, text in enumerate(dense)]
    return stake + rows + [("note", note) for note in run.report.notes]


def _likeness(noise: float, likeness: float | None) -> str:
    if not math.isfinite(noise):
        return "identical to dense"
    shown = "" if likeness is None else f", SSIM {likeness:.3f}"
    return f"PSNR {noise:.2f} dB{shown} against dense, same seed"


def faster(ratio: float) -> str:
    """Say how the times of dense and sparse compare; ratio: dense over sparse."""
    if not math.isfinite(ratio):
        return "too short to compare"
    return f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"
