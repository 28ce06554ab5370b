"""Write the model card, the loss curves and the contact sheet from a run's recorded figures, and
nothing else.
"""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dit_sparse.adherence import ATTRIBUTES
from dit_sparse.world import COLOURS, MOTIONS, PATTERNS, SHAPES

TITLES = {
    "text": "text encoder",
    "vae": "VAE",
    "image": "transformer, images",
    "video": "transformer, videos",
}


def curves(record: dict[str, Any], path: Path) -> None:
    """Draw every stage's loss over its own seconds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stages = [
        (k, record["stages"][k]["curve"])
        for k in TITLES
        if record["stages"].get(k, {}).get("curve")
    ]
    figure, axes = plt.subplots(
        1, max(len(stages), 1), figsize=(3 * max(len(stages), 1), 2.4), squeeze=False
    )
    for axis, (name, curve) in zip(axes[0], stages, strict=False):
        seconds, _, loss = zip(*curve, strict=True)
        axis.semilogy(seconds, loss, linewidth=1.2)
        axis.set_title(TITLES[name], fontsize=9)
        axis.set_xlabel("seconds", fontsize=8)
        axis.tick_params(labelsize=7, which="both")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].set_ylabel("loss", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def sheet(videos: np.ndarray, prompts: list[str], path: Path) -> None:
    """Lay out five moments of each video [n, F, H, W, 3] in two columns, captions above."""
    rows = []
    for video, prompt in zip(videos, prompts, strict=True):
        moments = np.linspace(0, len(video) - 1, 5).round().astype(int)
        strip = np.concatenate(
            [np.pad(video[i], ((0, 2), (0, 2), (0, 0)), constant_values=255) for i in moments], 1
        )
        head = np.full((18, strip.shape[1], 3), 255, np.uint8)
        cv2.putText(
            head, prompt, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA
        )
        rows.append(np.concatenate([head, strip]))
    half = (len(rows) + 1) // 2
    rows += [np.full_like(rows[0], 255)] * (2 * half - len(rows))
    picture = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], 1)
    ok, data = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 75])
    assert ok
    path.write_bytes(data.tobytes())


def _cell(cell: dict[str, float]) -> str:
    return f"{cell['percent']:.1f} [{cell['low']:.0f}, {cell['high']:.0f}]"


def _line(*cells: Any) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def _adherence(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    names = (*ATTRIBUTES, "all")
    lines = [_line("", *names), "|---" * (len(names) + 1) + "|"]
    return [*lines, *(_line(title, *(_cell(cells[n]) for n in names)) for title, cells in rows)]


def _training(record: dict[str, Any]) -> list[str]:
    lines = [_line("stage", "seconds", "steps", "samples", "last loss", "gate"), "|---" * 6 + "|"]
    for name, title in TITLES.items():
        row = record["stages"].get(name)
        if not row or "steps" not in row:
            continue
        figures = {k: v for k, v in row.get("gate", {}).items() if k != "passed"}
        passed = ", ".join(f"{k} {v}" for k, v in figures.items())
        last = f"{row['curve'][-1][2]:.4f}" if row.get("curve") else ""
        lines.append(
            _line(title, f"{row['seconds']:.0f}", row["steps"], f"{row['samples']:,}", last, passed)
        )
    return lines


def card(folder: Path, record: dict[str, Any], result: dict[str, Any]) -> str:
    """Write the text of README.md; folder holds the exported pipeline with its trained.json."""
    trained = json.loads((folder / "trained.json").read_text())
    default = trained["default"]
    size = sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6
    machines = sorted({f"{p['ranks']} x {p['device']}" for p in record["pieces"]})
    minutes = sum(p["seconds"] for p in record["pieces"]) / 60
    best = result["best"]
    settings = [
        (f"{r['steps']} steps, guidance {r['guidance']:g}", r["adherence"])
        for r in result["settings"]
    ]
    sizes = [
        (f"{r['frames']} x {r['height']} x {r['width']}", r["adherence"]) for r in result["sizes"]
    ]
    offered = ", ".join(f"{h} x {w}" for h, w in trained["sizes"])
    weak = min(
        ATTRIBUTES,
        key=lambda a: next(
            c
            for t, c in settings
            if t.startswith(f"{best['steps']} steps, guidance {best['guidance']:g}")
        )[a]["percent"],
    )
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "pipeline_tag: text-to-video",
            "library_name: diffusers",
            "---",
            "",
            "# `shapes`: a small text-to-video model for testing attention",
            "",
            f"A `WanPipeline` of stock diffusers classes ({size:.1f} MB of bf16 safetensors),",
            "trained from scratch on rendered clips of one moving shape. It exists so that sparse",
            "attention can be judged on a real, trained video transformer without a download and",
            "without a GPU. Licence: Apache-2.0, weights and training data (the renderer) alike.",
            "",
            "![contact sheet](contact_sheet.webp)",
            "",
            "Held-out prompts, five moments each, default settings, seeds 0 to 11, not picked.",
            "",
            "## Use",
            "",
            "```python",
            "import torch",
            "from diffusers import WanPipeline",
            "",
            'pipe = WanPipeline.from_pretrained("dit_sparse/models/shapes", dtype=torch.float32)',
            "video = pipe(",
            f'    "{trained["prompt"]}",',
            *(f"    {key}={value}," for key, value in default.items()),
            ").frames[0]",
            "```",
            "",
            "Captions: `a [small|large] COLOUR SHAPE MOTION over a PATTERN COLOUR background`.",
            "",
            f"- colours: {', '.join(COLOURS)}",
            f"- shapes: {', '.join(SHAPES)}",
            f"- motions: {', '.join(MOTIONS)}",
            f"- patterns: {', '.join(PATTERNS)}",
            "",
            f"Trained sizes (height x width): {offered}; frames:",
            f"{', '.join(map(str, trained['frames']))} at {trained['fps']} per second.",
            "",
            "## Limits",
            "",
            "- Not a general video model: it knows the words above, one object, and a still",
            "  camera. Other words count as unknown.",
            "- Other sizes and lengths were never trained and degrade.",
            "- The two colours must differ; a spinning circle or ring was never shown.",
            "- Text lengths of 20 to 64 and 512 tokens were trained; the default is",
            f"  {default['max_sequence_length']}.",
            f"- Its weakest attribute is the {weak}; see the tables.",
            "",
            "## Adherence",
            "",
            f"{result['prompts']} held-out prompts (combinations of attributes never trained), per",
            "cent that the detector in `dit_sparse/adherence.py` reads back as asked, 95 % Wilson",
            "intervals in brackets. Made at the end of training by",
            "",
            "```",
            result["command"],
            "```",
            "",
            "and measured again, dense or with any method, by",
            "`python demos/train_shapes/adherence.py --prompts 200`.",
            "",
            *_adherence([("detector on ground-truth renders", result["ground_truth"]), *settings]),
            "",
            f"The default is {best['steps']} steps at guidance {best['guidance']:g}. At that",
            "setting, by frames x height x width:",
            "",
            *_adherence(sizes),
            "",
            "## Training",
            "",
            f"`demos/train_shapes/train.py`, {minutes:.1f} minutes of wall clock in",
            f"{len(record['pieces'])} calls on {', '.join(machines)}.",
            "The text encoder is trained on captions alone and then frozen.",
            *record.get("notes", []),
            "",
            *_training(record),
            "",
            "![loss curves](loss.png)",
            "",
        ]
    )


if __name__ == "__main__":
    # python demos/train_shapes/card.py DIR: write the card of an exported pipeline again
    place = Path(sys.argv[1])
    recorded, measured = (
        json.loads((place / f"{name}.json").read_text()) for name in ("record", "adherence")
    )
    (place / "README.md").write_text(card(place, recorded, measured))
