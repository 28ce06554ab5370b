"""The tab "Look inside": what one head of one layer looks at in the video, and what is kept of it.

One generation is looked into and stays in memory; layer, head, step and patch then change at once.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from dit_sparse.demos import chart, form
from dit_sparse.demos import plan_viewer as viewer
from dit_sparse.demos.recording import Recording, Shelf, record
from dit_sparse.demos.runner import Page, Turn
from dit_sparse.demos.status import reported, status_of, stops, told

INTRO = """
Every small place of a video is drawn by **looking at all other places**: that is attention, and
most of the work of a large model. A sparse method looks only where it seems worth it. Press the
button, then **click any place in the video**: red is where that place looks, bright is what the
method really computes.
"""
READING = """
- **Where this place looks** is exact attention, computed anew for it: what the method has to meet.
- **What the method computes**: bright places are computed exactly, orange ones as pooled groups,
  dark ones not one by one; the line under the numbers says what becomes of them.
- A good setting keeps **much of the attention** with **little of the work**, at a **small error**.
- The **map** has all pairs of places: a line for each one that looks, a column for each looked at.
- Layers and heads differ a lot: some look at their own frame only, some at one spot through time.
"""
HEADS = "Click a number, and the pictures above show that head. The darker, the larger."
READY = "It generates once more, with the prompt and the settings of the tab “Generate”."
DONE = "Done: click any place in the video, or take the arrow keys."
EMPTY = "The video and its attention appear here."

CSS = """
h3 { margin: .6em 0 .2em; font-size: 1.05em } h3 small { font-weight: 400; opacity: .75 }
.frames { display: grid; gap: 6px; grid-template-columns: repeat(auto-fit, minmax(88px, 1fr)) }
figure { margin: 0 } figcaption { font-size: .85em; opacity: .85 }
.frames figcaption { text-align: center }
.frames img { width: 100%; height: auto; cursor: crosshair; display: block; border-radius: 4px;
  image-rendering: pixelated }
.frames img:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px }
.here figcaption { font-weight: 700; opacity: 1 }
.maps { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)) }
.maps img { width: 100%; max-width: 480px; height: auto; border-radius: 4px;
  image-rendering: pixelated }
.heads { display: flex; flex-wrap: wrap; gap: 1em 2em; overflow-x: auto; contain: inline-size }
.heads table { width: auto; margin: 0; border-collapse: collapse }
.heads :is(table, thead, tbody, tr, th, td) { border: 0 }
.heads caption { text-align: left; padding-bottom: .3em; font-weight: 600 }
.heads th { font-weight: 400; padding: .2em .5em; opacity: .8 }
.heads td { padding: 0; background: rgb(from var(--primary-500) r g b / calc(var(--share)
  * .65)) }
.heads button { all: unset; cursor: pointer; padding: .2em .5em;
  font-variant-numeric: tabular-nums }
.heads button:focus-visible { outline: 3px solid var(--color-accent); outline-offset: -2px }
.heads button[aria-current] { outline: 3px solid currentColor; outline-offset: -3px }
"""
# a click takes the patch under it, an arrow key the next one; focus stays on the picture
PLACES_JS = """
let again = null;
const told = (name) => element.querySelector('.places').dataset[name].split(',').map(Number);
const within = (at, count) => Math.min(count - 1, Math.max(0, Math.floor(at)));
const choose = (picture, row, column) => {
  const [, rows, columns] = told('sides');
  again = [...element.querySelectorAll('img')].indexOf(picture);
  trigger('choose', { patch: [Number(picture.dataset.frame), within(row, rows),
                              within(column, columns)] });
};
element.addEventListener('click', (event) => {
  const picture = event.target.closest('img[data-frame]');
  if (!picture) return;
  const box = picture.getBoundingClientRect(), [, rows, columns] = told('sides');
  choose(picture, (event.clientY - box.top) / box.height * rows,
         (event.clientX - box.left) / box.width * columns);
});
element.addEventListener('keydown', (event) => {
  const picture = event.target.closest('img[data-frame]');
  const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
                Enter: [0, 0] }[event.key];
  if (!picture || !way) return;
  event.preventDefault();
  const [, row, column] = told('patch');
  choose(picture, row + way[0], column + way[1]);
});
watch('value', () => {
  if (again !== null) element.querySelectorAll('img')[again]?.focus({ preventScroll: true });
  again = null;
});
"""
HEADS_JS = """
let again = null;
element.addEventListener('click', (event) => {
  const cell = event.target.closest('td button');
  if (!cell) return;
  again = [...element.querySelectorAll('td button')].indexOf(cell);
  trigger('choose', { layer: Number(cell.dataset.layer), head: Number(cell.dataset.head) });
});
watch('value', () => {
  if (again !== null)
    element.querySelectorAll('td button')[again]?.focus({ preventScroll: true });
  again = null;
});
"""


@dataclass(frozen=True)
class Parts:
    """The components of the tab. places: layer, head, step, frame, row, column; drawn: pictures."""

    key: gr.State
    start: gr.Button
    stop: gr.Button
    state: gr.HTML
    places: list[Any]
    order: gr.Radio
    drawn: list[gr.HTML]


def tab(app: Any) -> None:
    """Fill the tab."""
    shelf = Shelf()
    gr.Markdown(INTRO, elem_classes="intro")
    with gr.Column(elem_id="look"):
        parts = _parts(shelf)
    _on_start(app, shelf, parts)
    _on_choice(shelf, parts)


def _parts(shelf: Shelf) -> Parts:
    """Add the components."""
    key = gr.State(None, time_to_live=3600, delete_callback=shelf.drop)
    with gr.Row():
        start = gr.Button("Look inside", variant="primary", elem_id="look-start", min_width=140)
        stop = gr.Button("Stop", elem_id="look-stop", min_width=140)
    state = gr.HTML(status_of(READY), elem_id="look-state")
    with gr.Row():
        which = [
            gr.Radio([], label=name, interactive=True, min_width=200, info=info,
                     elem_id=f"look-{name.lower()}")
            for name, info in (("Layer", "The model has them in a row."),
                               ("Head", "Each layer has several, with tastes of their own."),
                               ("Step", "Counted from 0: early ones are noise, late ones details."))
        ]  # fmt: skip
    tiles = gr.HTML(css_template=CSS, min_height=120, elem_id="look-numbers")
    pictures = gr.HTML(chart.empty(EMPTY), css_template=CSS, js_on_load=PLACES_JS, min_height=320,
                       elem_id="look-places")  # fmt: skip
    with gr.Row():
        patch = [
            gr.Slider(0, 1, 0, step=1, label=name, min_width=200, elem_id=f"look-{name.lower()}")
            for name in ("Frame", "Row", "Column")
        ]
    order = gr.Radio(list(viewer.ORDERS), value=next(iter(viewer.ORDERS)), label="Map of all pairs",
                     elem_id="look-order")  # fmt: skip
    maps = gr.HTML(css_template=CSS, min_height=120, elem_id="look-maps")
    with gr.Accordion("How to read this", open=False):
        gr.Markdown(READING)
    with gr.Accordion("All heads in numbers", open=False):
        gr.Markdown(HEADS)
        table = gr.HTML(css_template=CSS, js_on_load=HEADS_JS, elem_id="look-heads")
    return Parts(key, start, stop, state, [*which, *patch], order, [tiles, pictures, maps, table])


def _on_start(app: Any, shelf: Shelf, parts: Parts) -> None:
    """Record a generation when the button is pressed, then draw it."""
    settings = app.settings

    def look(
        request: gr.Request, last: str | None, order: str, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Record a generation, then draw it."""

        def begin() -> Iterator[Any]:
            asked = form.request(values, settings.models, settings.device, app.folder)
            asked = replace(asked, compare=False, out=None)

            def job(turn: Turn) -> Recording:
                page = Page(turn)
                with page.steps("looking"):
                    return record(app.runner.model(asked, page), asked, page)

            return app.runner.work(request.session_hash or "", job)

        def drawn(recording: Recording) -> tuple[Any, ...]:
            return status_of(DONE), shelf.put(recording, last), *first(recording, order)

        yield from reported(begin, drawn, (gr.skip(),) * (len(outputs) - 1))

    given = [parts.key, parts.order, *(app.fields[name] for name in form.FIELDS)]
    outputs = [parts.state, parts.key, *parts.places, *parts.drawn]
    event = parts.start.click(
        look, given, outputs, show_progress="full", show_progress_on=[parts.state],
        api_name="look", **app.device,
    )  # fmt: skip
    stops(app, parts.stop, event, parts.state)


def _on_choice(shelf: Shelf, parts: Parts) -> None:
    """Draw what is chosen: by the fields, by a click on a picture or on the number of a head."""

    def show(key: str | None, *chosen: Any) -> tuple[Any, ...]:
        """Draw what is chosen; without a recording there is nothing to draw yet."""
        if key is None:
            return (gr.skip(),) * len(parts.drawn)
        with told():
            return draw(shelf.get(key), *chosen)

    def clicked(event: gr.EventData, *chosen: Any) -> tuple[Any, ...]:
        """Choose the patch that was clicked."""
        frame, row, column = event.patch
        return frame, row, column, *show(*chosen[:4], frame, row, column, chosen[-1])

    def cell(event: gr.EventData, *chosen: Any) -> tuple[Any, ...]:
        """Choose the head that was clicked."""
        return event.layer, event.head, *show(chosen[0], event.layer, event.head, *chosen[3:])

    inputs = [parts.key, *parts.places, parts.order]
    which, patch, (_, pictures, _, table) = parts.places[:3], parts.places[3:], parts.drawn
    gr.on(
        [*(radio.input for radio in [*which, parts.order]), *(slider.release for slider in patch)],
        show, inputs, parts.drawn, show_progress="hidden", trigger_mode="always_last", queue=False,
        api_name="look_show",
    )  # fmt: skip
    # every one counts: of those that come while one is under way, "always_last" forgets the place
    quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple", "queue": False,
                             "api_visibility": "private"}  # fmt: skip
    pictures.choose(clicked, inputs, [*patch, *parts.drawn], **quick)
    table.choose(cell, inputs, [*which[:2], *parts.drawn], **quick)


def summary(recording: Recording) -> str:
    """Say in one line what was looked into."""
    begin = recording.steps[0]
    dense = f", the first {begin} of {recording.total} steps dense by plan" if begin else ""
    some, every = len(recording.heads), recording.every
    part = f" {some} of {every} heads are kept: more take too much memory." if some < every else ""
    return (
        f"{recording.label}: {recording.density:.0%} of all attention computed{dense}.{part} "
        f"“{recording.request.prompt}”"
    )


def first(recording: Recording, order: str) -> tuple[Any, ...]:
    """Return what the choices offer for a recording, and the pictures of the first one."""
    layer, step = recording.layers[len(recording.layers) // 2], recording.steps[-1]
    head = recording.heads[0]
    chosen = layer, head, step, *recording.patch
    offers = zip((recording.layers, recording.heads, recording.steps), chosen[:3], strict=True)
    radios = [gr.Radio(choices=some, value=value) for some, value in offers]
    sliders = [gr.Slider(maximum=side - 1, value=at)
               for side, at in zip(recording.sides, recording.patch, strict=True)]  # fmt: skip
    return *radios, *sliders, *draw(recording, *chosen, order)


def draw(
    recording: Recording, layer: int, head: int, step: int, frame: int, row: int,
    column: int, order: str,
) -> tuple[str, str, str, str]:  # fmt: skip
    """Return the numbers, the video, the map and the table as HTML."""
    view = recording.view(layer, head, step, (frame, row, column))
    return (
        f"<p>{html.escape(summary(recording))}</p>{viewer.numbers(view, recording.rest)}",
        viewer.places(view, recording.frames),
        viewer.maps(view, viewer.ORDERS[order]),
        viewer.heads_table(recording, layer, head, step),
    )
