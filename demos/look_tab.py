"""The tab "Look inside": what one head of one layer looks at in the video, and what is kept of it.

One generation is looked into and stays in memory; layer, head, step and patch then change at once.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from dit_sparse.demos import form
from dit_sparse.demos import plan_viewer as viewer
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
READY = "It generates once, with the prompt and the settings of the tab “Generate”."
EMPTY = '<div class="empty">The video and its attention appear here.</div>'

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
.tiles { display: grid; gap: 8px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)) }
.tiles > div { padding: .5em .8em; border-radius: 8px; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary) }
.tiles b { font-size: 1.5em; font-variant-numeric: tabular-nums } .tiles small { display: block;
  opacity: .8 }
.paper { overflow-x: auto; contain: inline-size; padding: .8em; border-radius: 8px;
  background: #fcfcfc; color: #1e1e1e }
.paper table { display: inline-block; margin: 0 1.6em .8em 0; border-collapse: collapse }
.paper caption { text-align: left; color: #555 } .paper th { font-weight: 400; color: #666 }
.paper td, .paper th { padding: .15em .5em; font-variant-numeric: tabular-nums; border: 0 }
.paper td.shown { cursor: pointer } .paper td[aria-current] { outline: 3px solid #1ec83c;
  outline-offset: -3px }
.empty { display: grid; place-items: center; min-height: 320px; border-radius: 8px; opacity: .75;
  border: 1px dashed var(--border-color-primary); padding: 1em; text-align: center }
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
element.addEventListener('click', (event) => {
  const cell = event.target.closest('td.shown');
  const found = cell && cell.dataset.view.match(/layer(\\d+)-head(\\d+)-step/);
  if (found) trigger('choose', { layer: Number(found[1]), head: Number(found[2]) });
});
"""


def tab(app: Any) -> None:
    """Fill the tab."""
    shelf = viewer.Shelf()
    key = gr.State(None, time_to_live=3600, delete_callback=shelf.drop)
    gr.Markdown(INTRO)
    with gr.Row():
        start = gr.Button("Look inside", variant="primary", elem_id="look-start")
        stop = gr.Button("Stop", elem_id="look-stop")
    state = gr.HTML(status_of(READY), elem_id="look-state")
    with gr.Row():
        layer, head, step = (
            gr.Radio([], label=name, interactive=True, min_width=200, info=info,
                     elem_id=f"look-{name.lower()}")
            for name, info in (("Layer", "the model has them in a row"),
                               ("Head", "each layer has several, with tastes of their own"),
                               ("Step", "of the denoising: early = noise, late = details"))
        )  # fmt: skip
    tiles = gr.HTML(css_template=CSS, min_height=120, elem_id="look-numbers")
    pictures = gr.HTML(EMPTY, css_template=CSS, js_on_load=PLACES_JS, min_height=320,
                       elem_id="look-places")  # fmt: skip
    with gr.Row():
        patch = [
            gr.Slider(0, 1, 0, step=1, label=name, min_width=120, elem_id=f"look-{name.lower()}")
            for name in ("Frame", "Row", "Column")
        ]
    order = gr.Radio(list(viewer.ORDERS), value=next(iter(viewer.ORDERS)), label="Map of all pairs",
                     elem_id="look-order")  # fmt: skip
    drawn = gr.HTML(css_template=CSS, min_height=120, elem_id="look-maps")
    with gr.Accordion("How to read this", open=False):
        gr.Markdown(READING)
    with gr.Accordion("All heads in numbers", open=False):
        table = gr.HTML(css_template=CSS, js_on_load=HEADS_JS, elem_id="look-heads")

    places = [layer, head, step, *patch]
    inputs, outputs = [key, *places, order], [tiles, pictures, drawn, table]

    def show(key: str | None, *chosen: Any) -> tuple[Any, ...]:
        """Draw what is chosen; without a recording there is nothing to draw yet."""
        if key is None:
            return (gr.skip(),) * len(outputs)
        with told():
            return draw(shelf.get(key), *chosen)

    def look(
        request: gr.Request, last: str | None, order: str, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Record a generation, then draw it."""
        settings = app.settings

        def begin() -> Iterator[Any]:
            asked = form.request(values, settings.models, settings.device, app.folder)
            asked = replace(asked, compare=False, out=None)

            def job(turn: Turn) -> viewer.Recording:
                page = Page(turn)
                with page.steps("looking"):
                    return viewer.record(app.runner.model(asked, page), asked, page)

            return app.runner.work(request.session_hash or "", job)

        def drawn(recording: viewer.Recording) -> tuple[Any, ...]:
            text = "Done: click any place in the video, or take the arrow keys."
            return status_of(text), shelf.put(recording, last), *first(recording, order)

        yield from reported(begin, drawn, (gr.skip(),) * (1 + len(places) + len(outputs)))

    recorded = [state, key, *places, *outputs]
    given = [key, order, *(app.fields[name] for name in form.FIELDS)]
    event = start.click(
        look, given, recorded, show_progress="full", show_progress_on=[state], api_name="look",
        **app.device,
    )  # fmt: skip
    stops(app, stop, event, state)
    gr.on(
        [layer.input, head.input, step.input, order.input, *(slider.release for slider in patch)],
        show, inputs, outputs, show_progress="hidden", trigger_mode="always_last", queue=False,
        api_name="look_show",
    )  # fmt: skip

    def clicked(event: gr.EventData, *chosen: Any) -> tuple[Any, ...]:
        """Choose the patch that was clicked."""
        frame, row, column = event.patch
        return frame, row, column, *show(*chosen[:4], frame, row, column, chosen[-1])

    def cell(event: gr.EventData, *chosen: Any) -> tuple[Any, ...]:
        """Choose the head that was clicked."""
        return event.layer, event.head, *show(chosen[0], event.layer, event.head, *chosen[3:])

    # every one counts: of those that come while one is under way, "always_last" forgets the place
    quick: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple", "queue": False}
    pictures.choose(clicked, inputs, [*patch, *outputs], api_visibility="private", **quick)
    table.choose(cell, inputs, [layer, head, *outputs], api_visibility="private", **quick)


def summary(recording: viewer.Recording) -> str:
    """Say in one line what was looked into."""
    begin = recording.steps[0]
    dense = f", the first {begin} of {recording.total} steps dense by plan" if begin else ""
    return (
        f"{recording.label}: {recording.density:.0%} of all attention computed{dense}. "
        f"“{recording.request.prompt}”"
    )


def first(recording: viewer.Recording, order: str) -> tuple[Any, ...]:
    """Return what the choices offer for a recording, and the pictures of the first one."""
    layer, head, step = recording.layers[len(recording.layers) // 2], 0, recording.steps[-1]
    chosen = layer, head, step, *recording.patch
    offers = zip((recording.layers, recording.heads, recording.steps), chosen[:3], strict=True)
    radios = [gr.Radio(choices=some, value=value) for some, value in offers]
    sliders = [gr.Slider(maximum=side - 1, value=at)
               for side, at in zip(recording.sides, recording.patch, strict=True)]  # fmt: skip
    return *radios, *sliders, *draw(recording, *chosen, order)


def draw(
    recording: viewer.Recording, layer: int, head: int, step: int, frame: int, row: int,
    column: int, order: str,
) -> tuple[str, str, str, str]:  # fmt: skip
    """Return the numbers, the video, the map and the table as HTML."""
    view = recording.view(layer, head, step, (frame, row, column))
    return (
        f"<p>{html.escape(summary(recording))}</p>{viewer.numbers(view, recording.rest)}",
        viewer.places(view, recording.frames),
        viewer.maps(view, viewer.ORDERS[order]),
        recording.heads_table(layer, head, step),
    )
