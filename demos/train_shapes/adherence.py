"""Measure how well the built-in model, dense or sparse, does what held-out prompts say.

    python demos/train_shapes/adherence.py --prompts 200 --method dense
    python demos/train_shapes/adherence.py --prompts 12 --method pisa --psnr

Prints per cent right per attribute with 95 % Wilson intervals; --psnr also makes the dense videos
of the same seeds and prints the likeness. Prompt i gets seed i, so that methods can be compared
pair by pair. On two CPU cores a video takes about 10 seconds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import dit_sparse
from dit_sparse import adherence, metrics
from dit_sparse.pipelines import load
from dit_sparse.world import held_out_prompts, parse

FOLDER = Path(dit_sparse.__file__).parent / "models" / "shapes"


def arguments() -> argparse.Namespace:
    default = json.loads((FOLDER / "trained.json").read_text())["default"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--method", default="dense")
    parser.add_argument("--keep", type=float)
    parser.add_argument("--dense-steps", type=int, help="instead of the method's own")
    parser.add_argument("--steps", type=int, default=default["num_inference_steps"])
    parser.add_argument("--guidance", type=float, default=default["guidance_scale"])
    parser.add_argument("--frames", type=int, default=default["num_frames"])
    parser.add_argument("--height", type=int, default=default["height"])
    parser.add_argument("--width", type=int, default=default["width"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--psnr", action="store_true", help="compare with dense, seed by seed")
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    return parser.parse_args()


def make(pipe: Any, options: argparse.Namespace, prompt: str, seed: int) -> np.ndarray:
    """Return one video [F, H, W, 3] in 0..1."""
    return pipe(
        prompt,
        height=options.height,
        width=options.width,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).frames[0]


def main() -> None:
    options = arguments()
    params = {} if options.keep is None else {"keep": options.keep}
    when = options.dense_steps
    schedule = None if when is None else dit_sparse.Schedule(dense_steps=when)
    chosen = {"method": options.method, "schedule": schedule, **params}
    pipe = load("shapes", **chosen).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    prompts = held_out_prompts(options.prompts)
    plain = None
    if options.psnr:
        plain = load("shapes", "dense").to(options.device)
        plain.set_progress_bar_config(disable=True)
    rows, likeness = [], []
    for seed, prompt in enumerate(tqdm(prompts, unit="video")):
        video = make(pipe, options, prompt, seed)
        rows.append(adherence.score(video, parse(prompt)))
        if plain is not None:
            likeness.append(metrics.psnr(video, make(plain, options, prompt, seed)))
    print(dit_sparse.report(pipe))
    table = adherence.table(rows)
    for name, cell in table.items():
        print(f"{name:12}{cell['percent']:6.1f} %  [{cell['low']:.0f}, {cell['high']:.0f}]")
    if likeness:
        values = np.array(likeness)
        spread = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
        table["psnr"] = {"mean": values.mean(), "standard_error": spread, "each": values.tolist()}
        print(f"{'PSNR':12}{values.mean():6.2f} dB, standard error {spread:.2f}")
    if options.out:
        options.out.write_text(json.dumps({**vars(options), "out": None, "table": table}) + "\n")


if __name__ == "__main__":
    main()
