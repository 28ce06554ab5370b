"""Compare methods on the built-in model at equal measured density, prompt by prompt.

    python tests/measure/compare_methods.py --out docs/measurements/shapes-methods.json
    python tests/measure/compare_methods.py --table docs/measurements/shapes-methods.json

Every row of ROWS generates the same prompts from the same seeds under one schedule (first quarter
of the steps dense); its budget is moved until the measured density of the sparse calls is the
target. Against the dense videos: PSNR, SSIM; from the pixels alone: adherence; inside: the relative
error of every sparse attention output on the tensors it was given. Claims are paired differences
over prompts with a 95 % interval. `--prompts 2 --seeds 1 --densities 0.25` tries it out on a CPU.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor

import dit_sparse
from dit_sparse import Method, Schedule, adherence, metrics
from dit_sparse.compute.attend import Attend, dense
from dit_sparse.compute.remainder import Centroid
from dit_sparse.core import QKV, Context, Plan
from dit_sparse.pipelines import load
from dit_sparse.world import held_out_prompts, parse

SCHEDULE = Schedule(dense_steps=0.25)
SIZE = {"height": 128, "width": 128, "num_frames": 33}
CALL = {**SIZE, "num_inference_steps": 12, "guidance_scale": 2.0, "max_sequence_length": 64}
CHUNK = 20  # videos decoded at once


@dataclass(frozen=True)
class Row:
    """One line of the table: a method, its parameters, and another compute stage if it has one."""

    label: str
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    compute: Any = None

    def build(self, keep: float) -> Method:
        """Return the method at a budget."""
        method = dit_sparse.get(self.method, keep=keep, **self.params)
        method = method if self.compute is None else replace(method, compute=self.compute)
        return method.with_schedule(SCHEDULE)


# blocks of about 64 tokens everywhere, for the model has 2,304
PSA = {"block": (64, 64)}
VMOBA = {"slabs": 9}
# in 36 blocks the neighbours alone would fill a budget of a quarter
RECTIFIED = {"block": 64, "neighbours": "none", "p_remain": 0.0}
ROWS = (
    Row("psa", "psa", PSA),
    Row("psa, exact or skipped alone", "psa", {**PSA, "levels": (1,)}),
    Row("pisa", "pisa"),
    Row("pisa, first order per block", "pisa", {"first_order": "block"}),
    Row("pisa, zeroth order", "pisa", {"order": 0}),
    Row("pisa, the rest dropped", "pisa", compute=Attend()),
    Row("vmoba", "vmoba", VMOBA),
    Row("vmoba, 1D alone", "vmoba", {**VMOBA, "cycle": "1"}),
    Row("vmoba, 2D alone", "vmoba", {**VMOBA, "cycle": "2"}),
    Row("vmoba, 3D alone", "vmoba", {**VMOBA, "cycle": "3"}),
    Row("svg", "svg"),
    Row("svg2", "svg2"),
    Row("svg2 with centroids", "svg2", compute=Attend(Centroid())),
    Row("svg_ear", "svg_ear"),
    Row("draft", "draft", {"patch": (8, 8)}),
    Row("draft, budget per row", "draft", {"patch": (8, 8), "rule": "row"}),
    Row("sparse_vdit", "sparse_vdit"),
    Row("rectified", "rectified", RECTIFIED),
    Row("rectified, all dropped blocks (IPAR)", "rectified", {**RECTIFIED, "rectify": "ipar"}),
    Row("rectified, plain", "rectified", {**RECTIFIED, "rectify": "none"}),
    Row("sla, untrained", "sla"),
)
# claim, what the paper calls better, what it is compared with
CLAIMS = (
    ("multi-level beats binary (PSA)", "psa", "psa, exact or skipped alone"),
    ("approximate beats drop (PISA)", "pisa", "pisa, the rest dropped"),
    ("first order beats zeroth (PISA)", "pisa", "pisa, zeroth order"),
    ("EAR beats SVG2 (SVG-EAR)", "svg_ear", "svg2"),
    ("error-aware routing beats top-p, both with centroids", "svg_ear", "svg2 with centroids"),
    ("rectified beats plain (Rectified SpaAttn)", "rectified", "rectified, plain"),
    ("trusting some blocks beats all (GAPR)", "rectified", "rectified, all dropped blocks (IPAR)"),
    ("1-2-3D beats 1D (VMoBA)", "vmoba", "vmoba, 1D alone"),
    ("1-2-3D beats 2D (VMoBA)", "vmoba", "vmoba, 2D alone"),
    ("1-2-3D beats 3D (VMoBA)", "vmoba", "vmoba, 3D alone"),
    ("draft map beats fixed bands (DraftAttention)", "draft", "svg"),
)


class Checked:
    """A compute stage that at every third step also measures its error against dense attention."""

    def __init__(self, compute: Any) -> None:
        self.compute, self.errors = compute, []

    def __call__(self, x: QKV, plan: Plan, ctx: Context) -> Tensor:
        out = self.compute(x, plan, ctx)
        if ctx.step % 3:
            return out
        truth = dense(x, ctx).float()
        error = (out.float() - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
        self.errors.append(error.double())
        return out


def generate(pipe: Any, prompts: list[str], seeds: list[int], **options: Any) -> Tensor:
    """Return latents [n, C, T, h, w]; each prompt and seed is one video of the batch."""
    return pipe(
        prompts,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        output_type="latent",
        **{**CALL, **options},
    ).frames


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Return videos [n, F, H, W, 3] in 0..1."""
    vae, videos = pipe.vae, []
    mean, std = (
        torch.tensor(getattr(vae.config, n), device=latents.device).view(1, -1, 1, 1, 1)
        for n in ("latents_mean", "latents_std")
    )
    for some in latents.float().split(CHUNK):
        frames = vae.decode((some * std + mean).to(vae.dtype), return_dict=False)[0]
        videos.append((frames.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1))
    return torch.cat(videos)


def density(pipe: Any) -> float:
    """Return the mean measured density of the sparse calls of the last generation."""
    cells = [c for c in dit_sparse.report(pipe).cells if c.sparse]
    # a cell's density counts its dense calls as 1
    work = sum(c.density * c.calls - (c.calls - c.sparse) for c in cells)
    return work / sum(c.sparse for c in cells)


def calibrate(pipe: Any, row: Row, target: float, prompts: list[str]) -> tuple[float, float]:
    """Return the budget whose measured density is nearest to `target` (3 %), and that density."""
    keep, best = target, (math.inf, target, 0.0)
    tried: list[tuple[float, float]] = []
    for _ in range(4):
        dit_sparse.enable(pipe, row.build(keep))
        generate(pipe, prompts, list(range(len(prompts))), num_inference_steps=4)
        got = density(pipe)
        tried.append((got, keep))
        best = min(best, (abs(got / target - 1), keep, got))
        if best[0] < 0.03:
            break
        below = max((t for t in tried if t[0] < target), default=None)
        above = min((t for t in tried if t[0] >= target), default=None)
        if below and above and above[0] > below[0]:
            share = (target - below[0]) / (above[0] - below[0])
            keep = below[1] + share * (above[1] - below[1])
        else:
            keep = min(1.0, max(1e-3, keep * target / got))
    return best[1], best[2]


def alone() -> None:
    """Keep a worker to one thread: many workers share the cores."""
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def right(video: np.ndarray, prompt: str) -> bool:
    """Return whether a video [F, H, W, 3] uint8 shows everything its prompt says."""
    return all(adherence.score(video, parse(prompt)).values())


def measure(
    videos: Tensor, plain: Tensor | None, prompts: list[str], workers: ProcessPoolExecutor
) -> dict[str, Any]:
    """Return per video: PSNR and SSIM against `plain`, and whether every attribute is right."""
    found: dict[str, Any] = {}
    pixels = (255 * videos).round().byte().cpu().numpy()
    seen = workers.map(right, pixels, prompts, chunksize=4)
    if plain is not None:
        # metrics.psnr of all videos at once
        noise = (videos - plain).square().mean((2, 3, 4))
        found["psnr"] = (-10 * noise.log10()).mean(1).tolist()
        found["ssim"] = [metrics.ssim(a, b) for a, b in zip(videos, plain, strict=True)]
    return {**found, "right": list(seen)}


def run(
    pipe: Any, row: Row, target: float, prompts: list[str], seeds: list[int], plain: Tensor,
    workers: ProcessPoolExecutor,
) -> dict[str, Any]:  # fmt: skip
    """Return the measurements of one method at one density."""
    clock = [time.monotonic()]
    keep, _ = calibrate(pipe, row, target, prompts[:2])
    method = row.build(keep)
    checked = Checked(method.compute)
    dit_sparse.enable(pipe, replace(method, compute=checked))
    clock.append(time.monotonic())
    latents = generate(pipe, prompts, seeds)
    errors = torch.stack(checked.errors).mean(0).tolist()
    clock.append(time.monotonic())
    videos = decode(pipe, latents)
    found = measure(videos, plain, prompts, workers)
    clock.append(time.monotonic())
    return {
        "label": row.label,
        "target": target,
        "keep": keep,
        "density": density(pipe),
        "error": errors,
        **found,
        # of calibration, generation, and decoding with all measurements
        "seconds": np.diff(clock).round(2).tolist(),
    }


def interval(values: Any, seeds: int) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval; seeds of a prompt are averaged."""
    per_prompt = np.asarray(values, float).reshape(-1, seeds).mean(1)
    return per_prompt.mean(), 1.96 * per_prompt.std(ddof=1) / len(per_prompt) ** 0.5


def table(result: dict[str, Any]) -> str:
    """Return the Markdown of a result: one table per density, and the claims."""
    seeds, lines = result["seeds"], []
    for target in sorted({r["target"] for r in result["rows"]}, reverse=True):
        lines += [
            f"\nDensity {target:g}\n",
            "| method | measured density | PSNR, dB | SSIM | all attributes right | "
            "attention error |",
            "|---|---|---|---|---|---|",
        ]
        rows = [r for r in result["rows"] if r["target"] == target]
        for r in sorted(rows, key=lambda r: -np.mean(r["psnr"])):
            psnr, wide = interval(r["psnr"], seeds)
            lines.append(
                f"| {r['label']} | {r['density']:.3f} | {psnr:.2f} ± {wide:.2f} "
                f"| {np.mean(r['ssim']):.3f} | {100 * np.mean(r['right']):.1f} % "
                f"| {np.mean(r['error']):.3f} |"
            )
    lines += ["\n| claim | density | difference in PSNR, dB | in attention error | |", "|---|" * 5]
    lines[-1] = "|---|---|---|---|---|"
    found = {(r["label"], r["target"]): r for r in result["rows"]}
    for claim, better, other in CLAIMS:
        for target in sorted({r["target"] for r in result["rows"]}, reverse=True):
            if (better, target) in found and (other, target) in found:
                a, b = found[better, target], found[other, target]
                mean, wide = interval(np.subtract(a["psnr"], b["psnr"]), seeds)
                error = interval(np.subtract(a["error"], b["error"]), seeds)
                says = "open"
                if abs(mean) > wide:
                    says = "confirmed" if mean > 0 else "contradicted"
                lines.append(
                    f"| {claim} | {target:g} | {mean:+.2f} ± {wide:.2f} "
                    f"| {error[0]:+.4f} ± {error[1]:.4f} | {says} |"
                )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="rows that stand there already are kept")
    parser.add_argument("--table", type=Path, nargs="+", help="print results as tables and stop")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.25, 0.125, 0.5])
    parser.add_argument("--rows", nargs="+", help="only labels that start with one of these")
    parser.add_argument("--part", default="0/1", help="i/n: rows i, i + n, ... of the work")
    parser.add_argument("--seconds", type=float, default=1e9, help="start nothing new after this")
    args = parser.parse_args()
    if args.table:
        first, *others = (json.loads(path.read_text()) for path in args.table)
        first["rows"] += [row for other in others for row in other["rows"]]
        print(table(first))
        return 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=alone) as workers:
        return compare(args, workers)


def compare(args: argparse.Namespace, workers: ProcessPoolExecutor) -> int:
    """Measure all rows at all densities."""
    begin = time.monotonic()
    # both sides alike: the products of linear layers in tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    # every row decodes the same shapes
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load("shapes", "dense").to(device)
    pipe.set_progress_bar_config(disable=True)
    prompts = [p for p in held_out_prompts(args.prompts) for _ in range(args.seeds)]
    seeds = list(range(len(prompts)))
    plain = decode(pipe, generate(pipe, prompts, seeds))
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "versions": f"torch {torch.__version__}",
        "prompts": args.prompts,
        "seeds": args.seeds,
        "dense": measure(plain, None, prompts, workers),
        "rows": [],
        "failed": [],
    }
    if args.out and args.out.is_file():
        result["rows"] = json.loads(args.out.read_text())["rows"]
    done = {(row["target"], row["label"]) for row in result["rows"]}
    share = 100 * np.mean(result["dense"]["right"])
    print(f"{time.monotonic() - begin:6.1f}s dense: {share:.1f} % right", flush=True)
    part, parts = map(int, args.part.split("/"))
    work = [(t, r) for t in args.densities for r in ROWS]
    work = [(t, r) for t, r in work if not args.rows or r.label.startswith(tuple(args.rows))]
    for target, row in work[part::parts]:
        if (target, row.label) not in done and time.monotonic() - begin < args.seconds:
            try:
                found = run(pipe, row, target, prompts, seeds, plain, workers)
            except Exception as error:
                result["failed"].append(f"{row.label} {target}: {error!r}"[:300])
                print(result["failed"][-1], flush=True)
                continue
            result["rows"].append(found)
            shown = {
                n: v if n == "seconds" else round(float(np.mean(v)), 4)
                for n, v in found.items()
                if n != "label"
            }
            print(f"{time.monotonic() - begin:6.1f}s {row.label} {shown}", flush=True)
            if args.out:
                args.out.write_text(json.dumps(result) + "\n")
    return bool(result["failed"])


if __name__ == "__main__":
    sys.exit(main())
