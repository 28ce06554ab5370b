"""Generate videos of held-out prompts through the stock pipeline and let the detector read them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import models
import numpy as np
import torch
from diffusers import WanPipeline
from ranks import Run

from dit_sparse import adherence
from dit_sparse.world import Scene, held_out_prompts, parse, render

# (steps, guidance); a step costs one forward at guidance 1 and two above
SETTINGS = ((12, 1.0), (12, 2.0), (12, 3.0), (16, 1.0), (16, 2.0), (16, 3.0))
# points of "all" that one more forward must bring to be worth its time on a CPU
FORWARD_PRICE = 0.15


def assemble(run: Run, stage: str) -> WanPipeline:
    """Put a stage's averaged weights into a stock pipeline on this rank's device."""
    text, vae, flow = run.load("text_encoder"), run.load("vae_done"), run.load(stage)
    assert text and vae and flow
    parts = {"text": text, "vae": vae["model"], "transformer": flow["average"]}
    return models.pipeline(parts, vae["mean"].tolist(), vae["std"].tolist(), run.device)


@torch.no_grad()
def generate(
    run: Run,
    pipe: WanPipeline,
    prompts: Sequence[str],
    shape: tuple[int, int, int],
    steps: int,
    guidance: float,
) -> np.ndarray:
    """Return videos uint8 [n, F, H, W, 3]; shape (frames, height, width); prompt i gets seed i."""
    frames, height, width = shape
    videos = []
    for start in range(0, len(prompts), 50):
        some = list(prompts[start : start + 50])
        with run.autocast():
            out = pipe(
                prompt=some,
                height=height,
                width=width,
                num_frames=frames,
                num_inference_steps=steps,
                guidance_scale=guidance,
                max_sequence_length=models.TEXT_LENGTH,
                generator=[torch.Generator().manual_seed(start + i) for i in range(len(some))],
                output_type="np",
            ).frames
        videos.append((255 * np.clip(np.nan_to_num(out), 0, 1)).round().astype(np.uint8))
    return np.concatenate(videos)


def read(videos: np.ndarray, scenes: Sequence[Scene]) -> list[dict[str, bool]]:
    """Score many videos at once; numpy and OpenCV free the interpreter lock."""
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(adherence.score, videos, scenes))


def measure(
    run: Run,
    pipe: WanPipeline,
    n: int,
    shape: tuple[int, int, int],
    steps: int,
    guidance: float,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return the adherence table over n held-out prompts, shared out over the ranks."""
    prompts = held_out_prompts(n, seed)
    mine = prompts[run.rank :: run.world]
    scores = []
    if mine:
        scenes = [scene for scene in map(parse, mine) if scene]
        scores = read(generate(run, pipe, mine, shape, steps, guidance), scenes)
    return adherence.table(row for part in run.gather(scores) for row in part)


def brief(cells: dict[str, dict[str, float]], *, still: bool = False) -> dict[str, float]:
    """Keep the percentages of a table; `still` leaves the motion out."""
    return {
        k: round(c["percent"], 1)
        for k, c in cells.items()
        if not (still and k in ("motion", "all"))
    }


def ground_truth(run: Run, n: int, shape: tuple[int, int, int]) -> dict[str, dict[str, float]]:
    """Return the detector's accuracy on renders of the same prompts."""
    mine = [s for s in map(parse, held_out_prompts(n)[run.rank :: run.world]) if s]
    clips = [
        render([s], *shape, generator=torch.Generator().manual_seed(i))[0]
        for i, s in enumerate(mine)
    ]
    videos = np.stack([(255 * c).round().byte().permute(0, 2, 3, 1).numpy() for c in clips])
    return adherence.table(row for part in run.gather(read(videos, mine)) for row in part)


def evaluate(run: Run, pipe: WanPipeline, n: int, command: str) -> dict[str, Any]:
    """Measure the settings at the default size, then every offered size and length at the best one.

    Stops early rather than late: what the call has no time for is left out.
    """
    shape = (models.DEFAULT["num_frames"], models.DEFAULT["height"], models.DEFAULT["width"])
    result: dict[str, Any] = {"prompts": n, "command": command, "settings": [], "sizes": []}
    if not run.main:
        torch.set_num_threads(4)
    result["ground_truth"] = ground_truth(run, n, shape)
    run.say("adherence of ground truth", brief(result["ground_truth"]))
    for steps, guidance in SETTINGS:
        if result["settings"] and run.agree(run.left() < 35)[0]:
            run.say("no time left for more settings")
            break
        cells = measure(run, pipe, n, shape, steps, guidance)
        forwards = steps * (1 if guidance == 1 else 2)
        result["settings"].append(
            {"steps": steps, "guidance": guidance, "forwards": forwards, "adherence": cells}
        )
        run.say(f"adherence at {steps} steps, guidance {guidance}", brief(cells))
    best = max(
        result["settings"],
        key=lambda row: row["adherence"]["all"]["percent"] - FORWARD_PRICE * row["forwards"],
    )
    result["best"] = {"steps": best["steps"], "guidance": best["guidance"]}
    for frames in models.FRAMES:
        for height, width in models.SIZES:
            if run.agree(run.left() < 20)[0]:
                run.say("no time left for more sizes")
                return result
            known = (frames, height, width) == shape
            cells = (
                best["adherence"]
                if known
                else measure(run, pipe, n, (frames, height, width), *result["best"].values())
            )
            result["sizes"].append(
                {"frames": frames, "height": height, "width": width, "adherence": cells}
            )
            run.say(f"adherence at {frames}x{height}x{width}", brief(cells))
    return result
