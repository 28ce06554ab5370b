"""The tab "Generate": a prompt becomes a dense and a sparse video, side by side."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from dit_sparse.commands.model import BUILT_IN
from dit_sparse.commands.results import UNSTEADY, faster
from dit_sparse.demos import chart, form
from dit_sparse.demos.comparison import Comparison, compare
from dit_sparse.demos.player import LOOKS, Shown, component, drawing, player
from dit_sparse.demos.runner import Turn
from dit_sparse.demos.status import reported, status_of, stops

INTRO = """A video model spends most of its time in **attention**: every small patch of the video
looks at every other. Most of those looks matter little. A **sparse** method computes only the
share that matters, the **density**. Below, both ways start from the same noise: see what is lost,
and how much time is won."""
READY = "Choose a prompt and press Generate."
SOON = " The built-in model takes about a minute on a CPU, a few seconds on a GPU."
LONG = "Sparse attention saves attention, and only that: the longer the video, the more it pays."
# of Wan2.1: a frame of latents for 4 frames, a patch for 16 x 16 pixels
FULL = "81 frames of 720 x 1280 have 75,600 in Wan2.1"
SHOW_STATUS = """() => document.querySelector("#status").scrollIntoView({ block: "nearest" })"""
WHOLE = 0.999  # density of a step that is dense
RESULT = ("status", "player", "numbers", "command", "python", "shown")


def tab(app: Any) -> None:
    """Fill the tab."""
    models = app.settings.models
    first = models[0]
    gr.Markdown(INTRO, elem_classes="intro")
    with gr.Row(elem_classes="sides"):
        with gr.Column(scale=2, min_width=300):
            fields, go, stop = _form(app, first, models)
        with gr.Column(scale=3, min_width=300):
            ready = READY + SOON * (first == BUILT_IN)
            status = gr.HTML(status_of(ready), elem_id="status")
            shown = component(gr)
            numbers = gr.HTML(BLANK, elem_id="numbers")
    with gr.Accordion("Make it again: command line and Python", open=False):
        plain: dict[str, Any] = {"interactive": False, "lines": 1, "wrap_lines": True,
                                 "show_line_numbers": False}  # fmt: skip
        command = gr.Code(label="Command line", language="shell", **plain)
        python = gr.Code(label="Python", language="python", **plain)
    app.fields.update(fields)
    asked = [fields[name] for name in form.FIELDS]
    outputs = [status, shown, numbers, command, python, app.shown]
    event = gr.on(
        [go.click, fields["prompt"].submit],
        _generator(app),
        asked,
        outputs,
        validator=_validator(app),
        show_progress="full",
        show_progress_on=[status],
        api_name="generate",
        **app.device,
    )
    # on a phone the form is above the screen by then
    go.click(None, js=SHOW_STATUS)
    stops(app, stop, event, status)


def _form(app: Any, first: str, models: Sequence[str]) -> tuple[dict[str, Any], Any, Any]:
    """Add the fields and the buttons; returns the fields by name, and the two buttons."""
    prompt = gr.Textbox(
        form.prompts(first)[0], label="Prompt", lines=2, max_lines=4, autofocus=False,
        info="What to show. The built-in model knows shapes, colours, motions and backgrounds.",
    )  # fmt: skip
    examples = gr.Dataset(
        components=[prompt], samples=[[text] for text in form.prompts(first)],
        label="Examples", samples_per_page=4, elem_id="examples",
    )  # fmt: skip
    examples.click(
        lambda sample: sample[0], examples, prompt, queue=False, api_visibility="private"
    )
    method = gr.Dropdown(
        form.methods(), value="pisa", label="Method", info="How it finds what matters."
    )
    keep = gr.Slider(
        form.LEAST_KEEP, 1, 0.25, step=0.01, label="Density",
        info="Share of the attention that is computed, after a few dense steps.",
    )  # fmt: skip
    with gr.Row():
        go = gr.Button("Generate", variant="primary", elem_id="go", min_width=140)
        stop = gr.Button("Stop", variant="secondary", elem_id="stop", min_width=140)
    with gr.Accordion("Size, steps, seed, model, settings", open=False):
        with gr.Row():
            size = gr.Dropdown(
                form.sizes(first), value=form.OWN, label="Size", info="Height x width.",
                allow_custom_value=True,
            )  # fmt: skip
            frames = gr.Dropdown(
                form.lengths(first), value=form.OWN, label="Frames", allow_custom_value=True,
                info="More frames, more attention.",
            )  # fmt: skip
        with gr.Row():
            steps = gr.Slider(
                1, form.MOST_STEPS, form.steps(first), step=1, label="Steps",
                info="From noise to video.",
            )  # fmt: skip
            seed = gr.Number(0, label="Seed", precision=0, info="Same seed, same video.")
        model = gr.Dropdown(list(models), value=first, label="Model")
        settings = gr.Textbox(
            "", label="Other settings of the method", lines=2, max_lines=8, interactive=False,
            info="Those of a dot of “Compare”; the method's own where this is empty.",
        )  # fmt: skip
        # those of one method say nothing to another
        method.input(lambda: "", None, settings, queue=False, api_visibility="private")
        model.change(
            _offers, model, [size, frames, steps, examples], queue=False, api_visibility="private"
        )
    fields = {"prompt": prompt, "method": method, "keep": keep, "steps": steps, "size": size,
              "frames": frames, "seed": seed, "model": model,
              "settings": settings}  # fmt: skip
    for name, place in fields.items():
        place.elem_id = f"field-{name}"
    return fields, go, stop


def _offers(model: str) -> tuple[Any, ...]:
    """Return what the fields offer for a model."""
    return (
        gr.Dropdown(choices=form.sizes(model), value=form.OWN),
        gr.Dropdown(choices=form.lengths(model), value=form.OWN),
        form.steps(model),
        gr.Dataset(samples=[[text] for text in form.prompts(model)]),
    )


def _validator(app: Any) -> Any:
    """Return what runs before a visitor is queued: which field is wrong, and why."""

    def check(*values: Any) -> list[Any]:
        wrong = {}
        try:
            form.request(values, app.settings.models, app.settings.device, app.folder)
        except form.Refused as error:
            wrong = {error.field: str(error)}
        return [gr.validate(name not in wrong, wrong.get(name, "")) for name in form.FIELDS]

    return check


def _generator(app: Any) -> Any:
    """Return what runs when it is a visitor's turn: yields all outputs of the tab."""

    def generate(
        prompt: str, method: str, keep: float, steps: int, size: str, frames: str, seed: int,
        model: str, settings: str, request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        values = prompt, method, keep, steps, size, frames, seed, model, settings
        visitor = request.session_hash or ""
        told: list[str] = []

        def begin() -> Iterator[Any]:
            folder = app.files.new(visitor)
            asked = form.request(values, app.settings.models, app.settings.device, folder)
            yield status_of("starting"), drawing(), BLANK, "", "", None

            def job(turn: Turn) -> Comparison:
                made = compare(app.runner, asked, turn)
                app.files.save(folder)
                return made

            yield from app.runner.work(visitor, job)

        rest = [gr.skip()] * (len(RESULT) - 1)
        yield from reported(begin, lambda made: results(made, told), rest, told.append)

    return generate


def results(made: Comparison, told: Sequence[str]) -> tuple[Any, ...]:
    """Return all outputs of the tab for a finished comparison."""
    (dense, every), (_, _), (difference, legend) = LOOKS
    titles = (
        (dense, every, f"the dense video of: {made.request.prompt}"),
        (made.request.method or "sparse", f"{made.density:.0%} of those looks",
         f"the same video, made with {made.label}"),
        (difference, legend, f"where both differ, {legend}"),
    )  # fmt: skip
    videos = [Shown(*title, file) for title, file in zip(titles, made.files, strict=True)]
    return (
        status_of(f"Done. {summary(made)}"),
        player(videos, *made.shape, made.fps),
        numbers_of(made, told),
        made.command,
        made.python,
        made.request,
    )


def likeness(made: Comparison) -> str:
    """Return how like the dense video the sparse one is."""
    return "identical" if math.isinf(made.psnr) else f"{made.psnr:.1f} dB"


def summary(made: Comparison) -> str:
    """Say in one line what came out."""
    alike = "is the same" if math.isinf(made.psnr) else f"is like the dense one to {likeness(made)}"
    time = f", {faster(made.speedup)} here" if math.isfinite(made.speedup) else ""
    return f"With {made.density:.0%} of the attention the video {alike}{time}."


def numbers_of(made: Comparison, told: Sequence[str] = ()) -> str:
    """Return how alike the videos are, the times as bars and the densities as a line."""
    dense, sparse = made.seconds
    whole = sum(density > WHOLE for density in made.densities)
    dense_steps = f"{whole} of {len(made.densities)} steps stay dense"
    facts = [
        ("likeness, PSNR", likeness(made), "differences are hard to see from 30 dB on"),
        ("likeness, SSIM", "-" if made.ssim is None else f"{made.ssim:.3f}", "1 is equal"),
        ("attention computed", f"{made.density:.0%}", dense_steps if whole else "in all steps"),
        ("speed", faster(made.speedup), "all steps, this machine"),
    ]
    times = [("dense", dense, f"{dense:.1f} s"), (made.request.method or "sparse", sparse,
             f"{sparse:.1f} s")]  # fmt: skip
    frames, height, width = made.shape
    here = f" This video has {made.tokens:,} patches; {FULL}." if made.tokens else ""
    lines = [
        *told,
        f"{made.label}: {frames} frames of {height} x {width}.",
        LONG + here,
        *([] if made.steady else [UNSTEADY]),
        *made.notes,
    ]
    return (
        f'{chart.tiles(facts)}<div class="charts">'
        f"{chart.bars('Time of all steps', times)}"
        f"{chart.line('Density of each step', made.densities, 'step')}</div>"
        f'<ul class="notes">{"".join(f"<li>{html.escape(x)}</li>" for x in lines)}</ul>'
    )


BLANK = '<div class="tiles blank-numbers"></div>'
