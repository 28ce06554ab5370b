"""Train the built-in model `shapes`: one command that stops in time and goes on where it stopped.

    python demos/train_shapes/train.py --work DIR --stages text --device cpu
    torchrun --standalone --nproc_per_node=gpu demos/train_shapes/train.py --work DIR --minutes 9
    torchrun --standalone --nproc_per_node=gpu demos/train_shapes/train.py --work DIR \\
        --minutes 9 --finish --export OUT

Exit codes: 0 done, or out of time with the state saved; 3 a gate failed.
"""

import time

STARTED = time.monotonic()

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import card  # noqa: E402
import evaluate  # noqa: E402
import flow  # noqa: E402
import models  # noqa: E402
import stages  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from attention import choose  # noqa: E402
from diffusers import WanPipeline  # noqa: E402
from engine import gate  # noqa: E402
from ranks import GateFailed, OutOfTime, Run, write  # noqa: E402

from dit_sparse.world import held_out_prompts  # noqa: E402

# seconds of training in each stage, compilation and caches not counted
BUDGET = {"text": 75.0, "vae": 140.0, "image": 210.0, "video": 480.0}
# per rank
BATCH = {"text": 128, "vae": 32, "image": 768, "video": 64}
# clips per rank
CACHE = {"image": 400_000, "main": 96_000, "side": 16_000}
# seconds kept for measuring and writing the model card when the call has to finish the model
CLOSING = 70.0
GATES = {
    "image": {"colour": 75, "background": 75, "shape": 60},
    "video": {"colour": 80, "motion": 80, "shape": 60},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", required=True, help="folder of the full state, kept between calls"
    )
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="wall clock of this call, from process start"
    )
    parser.add_argument("--stages", default="text,vae,image,video", help="stages to run, in order")
    parser.add_argument("--budget", action="append", default=[], metavar="STAGE=SECONDS")
    parser.add_argument("--batch", action="append", default=[], metavar="STAGE=CLIPS")
    parser.add_argument("--cache", type=float, default=1.0, help="scale of the latent caches")
    parser.add_argument(
        "--finish",
        action="store_true",
        help="shrink the video stage so that this call ends the model",
    )
    parser.add_argument(
        "--export",
        type=Path,
        help="write the pipeline, its adherence and its card here when trained",
    )
    parser.add_argument(
        "--prompts", type=int, default=200, help="held-out prompts of the closing measurement"
    )
    parser.add_argument(
        "--text", type=Path, help="a text_encoder.pt of another machine, in place of the text stage"
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="an exported pipeline whose VAE, text encoder and transformer to go on from",
    )
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak rate of the image stage")
    parser.add_argument("--no-gates", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="tiny networks, clips and budgets: proves that the code works",
    )
    return parser.parse_args()


def settle(options: argparse.Namespace) -> None:
    """Apply the overrides to the tables above."""
    if options.smoke:
        models.smoke_sizes()
        models.SIZES, models.FRAMES = ((32, 32), (32, 48), (48, 32)), (9, 5)
        models.DEFAULT = {"height": 32, "width": 32, "num_frames": 9}
        evaluate.SETTINGS = ((2, 1.0), (2, 2.0))
        BUDGET.update(text=4, vae=4, image=4, video=4)
        BATCH.update(text=16, vae=2, image=8, video=2)
        CACHE.update(image=64, main=8, side=4)
        options.prompts = min(options.prompts, 5)
    for table, given in ((BUDGET, options.budget), (BATCH, options.batch)):
        for item in given:
            name, value = item.split("=")
            table[name] = type(table[name])(value)
    for name in CACHE:
        CACHE[name] = int(CACHE[name] * options.cache)


def start_from(run: Run, folder: Path) -> None:
    """Take an exported pipeline's weights as finished text, VAE and image stages."""
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    for name, state in {
        "text_encoder": pipe.text_encoder.state_dict(),
        "vae_done": {
            "model": pipe.vae.state_dict(),
            "mean": torch.tensor(pipe.vae.config.latents_mean),
            "std": torch.tensor(pipe.vae.config.latents_std),
        },
        "image": {"average": pipe.transformer.state_dict()},
    }.items():
        run.save(name, state)
    for name in ("text", "vae", "image"):
        run.note(name, done=True)


def need(run: Run, seconds: float, name: str) -> None:
    """Do not begin what this call cannot use."""
    if run.agree(run.left() < seconds)[0]:
        raise OutOfTime(name)


def image(run: Run, options: argparse.Namespace) -> None:
    need(run, 8 if options.smoke else 70, "image")
    choose(run, [(BATCH["image"], 4, 256, 64)])
    size = (models.DEFAULT["height"], models.DEFAULT["width"])
    recipe = flow.Recipe(
        "image", BUDGET["image"], options.lr, 0.4 * options.lr, 0.5, 0.998, options.optimizer
    )
    stage = flow.stage_for(run, recipe, None)
    encoder = flow.Encoder(run)
    cache = encoder.fill(CACHE["image"], min(CACHE["image"], 1000), 1, size, 300 + stage.step, 40)
    flow.Trainer(run, stage, [(cache, 1, BATCH["image"])], 1.4, 310 + stage.step).fit()
    check(run, "image", (1, *size))


def video(run: Run, options: argparse.Namespace) -> None:
    need(run, 8 if options.smoke else 110, "video")
    batch, (long, short) = BATCH["video"], models.FRAMES
    tokens = (long - 1) // 4 + 1, (short - 1) // 4 + 1
    square, wide, tall = models.SIZES
    heads, dim = (models.TRANSFORMER[k] for k in ("num_attention_heads", "attention_head_dim"))
    # a short clip is the first latents of a long one, and more of them fill the card
    more = batch * 7 // 4
    sizes = [t * (h // 8) * (w // 8) for h, w in models.SIZES for t in tokens]
    choose(run, [(batch, heads, size, dim) for size in sizes])
    recipe = flow.Recipe(
        "video", BUDGET["video"], 0.8 * options.lr, 1e-5, 0.45, 0.998, options.optimizer
    )
    stage = flow.stage_for(run, recipe, "image")
    encoder = flow.Encoder(run)
    # the longest first: it is the one most likely to be cut short
    main = encoder.fill(CACHE["main"], min(CACHE["main"], 64), long, square, 400 + stage.step, 50)
    sides = [
        encoder.fill(CACHE["side"], min(CACHE["side"], 64), long, size, 410 + i + stage.step, 15)
        for i, size in enumerate((wide, tall))
    ]
    del encoder
    # every kind once at the front, since these calls compile
    kinds = [(c, t, batch if t == tokens[0] else more) for c in (main, *sides) for t in tokens]
    trainer = flow.Trainer(
        run, stage, kinds + 8 * [(main, tokens[0], batch)], 3.0, 420 + stage.step
    )
    if options.finish:
        stage.closing = 4.0 if options.smoke else CLOSING
    trainer.fit()
    check(run, "video", (long, *square))


def check(run: Run, name: str, shape: tuple[int, int, int]) -> None:
    """Close a flow stage: 64 held-out prompts, 12 steps, guidance 2."""
    run.sync()
    cells = evaluate.measure(run, evaluate.assemble(run, name), 64, shape, 12, 2.0, seed=5)
    figures = evaluate.brief(cells, still=shape[0] == 1)
    gate(run, name, all(figures[k] >= least for k, least in GATES[name].items()), **figures)


def close(run: Run, options: argparse.Namespace) -> None:
    """Export the model, load it back, measure it and write its card."""
    folder: Path = options.export
    if run.main:
        models.export(evaluate.assemble(run, "video"), folder, steps=12, guidance=1.0)
    run.agree(0.0)
    pipe = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(run.device)
    pipe.set_progress_bar_config(disable=True)
    result = evaluate.evaluate(run, pipe, options.prompts, command())
    prompts = held_out_prompts(12, seed=9)
    shape = (models.DEFAULT["num_frames"], models.DEFAULT["height"], models.DEFAULT["width"])
    if not run.main:
        return
    shown = evaluate.generate(run, pipe, prompts, shape, *result["best"].values())
    trained = json.loads((folder / "trained.json").read_text())
    trained["default"].update(
        num_inference_steps=result["best"]["steps"], guidance_scale=result["best"]["guidance"]
    )
    write(folder / "trained.json", json.dumps(trained, indent=1) + "\n")
    write(folder / "adherence.json", json.dumps(result, indent=1) + "\n")
    piece(run)
    write(folder / "record.json", json.dumps(run.record, indent=1) + "\n")
    card.sheet(shown, prompts, folder / "contact_sheet.webp")
    card.curves(run.record, folder / "loss.png")
    write(folder / "README.md", card.card(folder, run.record, result))
    run.say(f"written: {folder}")


def command() -> str:
    """Return the command line of this call with its folders left open."""
    words = [a for a in sys.argv[1:] if a != "--smoke"]
    folders = ("--work", "--export", "--text", "--start")
    pairs = zip(["", *words], words, strict=False)
    shown = ["DIR" if before in folders else word for before, word in pairs]
    launch = "torchrun --standalone --nproc_per_node=gpu" if "RANK" in os.environ else "python"
    return f"{launch} demos/train_shapes/train.py {' '.join(shown)}"


def piece(run: Run) -> None:
    """Record what this call took; a later mark of the same call replaces the earlier one."""
    device = torch.cuda.get_device_name() if run.device.type == "cuda" else "CPU"
    run.record["pieces"] = [p for p in run.record["pieces"] if p["call"] != run.call]
    seconds = round(time.monotonic() - run.started, 1)
    run.record["pieces"].append(
        {"call": run.call, "seconds": seconds, "ranks": run.world, "device": device}
    )
    if run.main:
        write(run.work / "record.json", json.dumps(run.record, indent=1))


def work(run: Run, options: argparse.Namespace) -> None:
    if options.start and not run.done("image"):
        start_from(run, options.start)
    if options.text and not run.done("text"):
        if run.main:
            shutil.copy(options.text, run.work / "text_encoder.pt")
        row = options.text.with_name("record.json")
        if row.exists():
            run.record["stages"]["text"] = json.loads(row.read_text())["stages"]["text"]
        run.note("text", done=True)
    run.agree(0.0)
    size, frames = models.DEFAULT["height"], 9 if options.smoke else 17
    todo = {
        "text": lambda: stages.text(run, BUDGET["text"], BATCH["text"]),
        "vae": lambda: (
            need(run, 8 if options.smoke else 60, "vae"),
            stages.vae(run, BUDGET["vae"], BATCH["vae"], size, frames),
        ),
        "image": lambda: image(run, options),
        "video": lambda: video(run, options),
    }
    for name in options.stages.split(","):
        if run.done(name):
            continue
        try:
            todo[name]()
        except GateFailed as failure:
            if not options.no_gates or "gate" not in run.record["stages"].get(name, {}):
                raise
            run.say(f"going on although {failure}")
        run.note(name, done=True)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
    if options.export:
        if not run.done("video"):
            raise OutOfTime("export")
        close(run, options)


def main() -> int:
    options = arguments()
    settle(options)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch._dynamo.config.recompile_limit = 64
    reserve = 2.0 if options.smoke else 12.0
    compiled = not options.no_compile and (torch.cuda.is_available() and options.device != "cpu")
    run = Run(
        options.work, options.minutes, options.device, STARTED, compiled=compiled, reserve=reserve
    )
    finished = [name for name in BUDGET if run.done(name)]
    run.say(f"{run.world} rank(s) on {run.device.type}, {run.left():.0f} s; done: {finished}")
    code = 0
    try:
        work(run, options)
        run.say("all stages asked for are done")
    except OutOfTime as where:
        run.say(f"out of time in {where}: state saved in {run.work}, call again to go on")
    except GateFailed as failure:
        run.say(f"GATE: {failure}")
        code = 3
    piece(run)
    if run.world > 1:
        dist.barrier() if run.device.type == "cpu" else run.agree(0.0)
        dist.destroy_process_group()
    return code


if __name__ == "__main__":
    sys.exit(main())
