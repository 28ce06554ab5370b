"""The tab "Compare": how near each setting comes to dense, and at what cost.

The plot and the table show the evaluation that ships with the model, or a small one made here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from dit_sparse.commands.request import Request
from dit_sparse.demos import evaluations, form, front, sortable
from dit_sparse.demos.runner import Page, Turn
from dit_sparse.demos.status import reported, status_of, stops, told

INTRO = """
Every dot is one method at one budget: **higher is nearer to the dense video, further left is less
work**. No other setting beats those on the dashed line in both. Choose a dot to load its setting
into the tab “Generate”.
"""
SHIPPED, HERE = "shipped with the model", "measured here"
NONE = "This model has no evaluation beside it: measure a few methods here, below."

CSS = """
.plot { display: grid; grid-template-columns: 1.4em 1fr; gap: 4px 44px }
.up { writing-mode: vertical-rl; transform: rotate(180deg); text-align: center; font-size: .9em }
.across { grid-column: 2; text-align: center; font-size: .9em; margin-top: 1.3em }
.area { position: relative; height: clamp(280px, 46vw, 440px); border-left: 1px solid currentColor;
  border-bottom: 1px solid currentColor }
svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible }
polyline { fill: none; stroke: currentColor; opacity: .6; stroke-dasharray: 6 5;
  vector-effect: non-scaling-stroke }
.x, .y { position: absolute; font-size: .8em; font-variant-numeric: tabular-nums; opacity: .8 }
.x { top: 100%; transform: translateX(-50%); padding-top: 3px }
.y { right: 100%; transform: translateY(50%); padding-right: 6px }
.dense { position: absolute; top: 0; bottom: 0; border-left: 1px dotted currentColor; opacity: .8 }
.dense small { position: absolute; top: 0; right: 4px }
.point { position: absolute; width: 16px; height: 16px; padding: 0; border: 2px solid transparent;
  border-radius: 50%; transform: translate(-50%, 50%); cursor: pointer;
  background: hsl(var(--hue) 62% 50%); background-clip: padding-box }
.point.front, .ring { border-color: currentColor }
.mixed { border-radius: 2px }
.point:hover, .point:focus-visible { z-index: 2; outline: 3px solid var(--color-accent);
  outline-offset: 2px }
.point[aria-pressed="true"] { z-index: 1; outline: 3px solid currentColor; outline-offset: 2px }
.readout { min-height: 2.8em; margin: .6em 0 0; font-variant-numeric: tabular-nums }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .9em }
.key { display: inline-flex; align-items: center; gap: 5px }
.key i { width: 11px; height: 11px; border-radius: 50%; background: hsl(var(--hue) 62% 50%) }
.key i.mixed { border-radius: 2px }
.key i.ring { background: none; border: 2px solid currentColor }
.empty { display: grid; place-items: center; min-height: 320px; border-radius: 8px; opacity: .75;
  border: 1px dashed var(--border-color-primary); padding: 1em; text-align: center }
"""
PLOT_JS = """
const tell = (event) => {
  const point = event.target.closest('.point');
  if (point) element.querySelector('.readout').textContent = point.getAttribute('aria-label');
};
let again = null;
element.addEventListener('mouseover', tell);
element.addEventListener('focusin', tell);
element.addEventListener('click', (event) => {
  const point = event.target.closest('.point');
  if (!point) return;
  again = point.dataset.label;
  trigger('choose', { label: again });
});
watch('value', () => {
  const points = [...element.querySelectorAll('.point')];
  if (again !== null) points.find((point) => point.dataset.label === again)?.focus();
  again = null;
});
"""


def tab(app: Any) -> None:
    """Fill the tab."""
    shipped = evaluations.saved(app.settings.model)
    here = gr.State(None, time_to_live=3600)
    chosen = gr.State(None)
    names = evaluations.methods(shipped) if shipped else []
    cost, gain = front.cost_of(shipped), next(iter(front.GAINS))
    gr.Markdown(INTRO)
    with gr.Row():
        source = gr.Radio([SHIPPED, HERE], value=SHIPPED, label="Numbers", elem_id="compare-source")
        across = gr.Radio(list(front.COSTS), value=cost, label="Cost", elem_id="compare-cost")
        up = gr.Radio(list(front.GAINS), value=gain, label="Likeness", elem_id="compare-gain")
    with gr.Accordion("Filter by method", open=False):
        some = gr.CheckboxGroup(names, value=names, label="Methods", elem_id="compare-methods")
        with gr.Row():
            every, none = gr.Button("All", size="sm"), gr.Button("None", size="sm")
    facts = gr.Markdown(evaluations.told(shipped) if shipped else NONE, elem_id="compare-told")
    plot = gr.HTML(
        front.picture(shipped, cost, gain, names) if shipped else _nothing(NONE),
        css_template=CSS, js_on_load=PLOT_JS, min_height=420, elem_id="compare-plot",
    )  # fmt: skip
    with gr.Row():
        loaded = gr.Markdown("No setting is chosen yet.", elem_id="compare-loaded", min_height=40)
        go = gr.Button("Open “Generate”", elem_id="compare-open", interactive=False)
    table = gr.HTML(
        _table(shipped, names), css_template=sortable.CSS, js_on_load=sortable.JS, min_height=120,
        elem_id="compare-table",
    )  # fmt: skip
    with gr.Accordion("Measure here", open=shipped is None):
        gr.Markdown(
            "A small evaluation on this machine: short videos, few steps. It says which way things "
            "go; `dit-sparse eval` says it with intervals."
        )
        with gr.Row():
            tried = gr.Dropdown(
                evaluations.measurable(), value=["pisa", "draft"], multiselect=True,
                max_choices=evaluations.METHODS, label="Methods", elem_id="compare-tried",
            )  # fmt: skip
            keep = gr.Slider(0.05, 1, 0.25, step=0.05, label="Budget: share of blocks kept",
                             elem_id="compare-keep")  # fmt: skip
            videos = gr.Slider(1, evaluations.VIDEOS, 1, step=1, label="Videos",
                               elem_id="compare-videos")  # fmt: skip
        with gr.Row():
            start = gr.Button("Measure", variant="primary", elem_id="compare-start")
            stop = gr.Button("Stop", elem_id="compare-stop")
        state = gr.HTML(status_of("Nothing is measured yet."), elem_id="compare-state")

    def result(source: str, own: Any) -> Any:
        return own if source == HERE else shipped

    def draw(
        source: str, cost: str, gain: str, names: list[str], own: Any, label: str | None
    ) -> tuple[str, str, str]:
        """Draw what is chosen."""
        found = result(source, own)
        if found is None:
            return NONE, _nothing(NONE), _table(None, [])
        return (
            evaluations.told(found),
            front.picture(found, cost, gain, names, label),
            _table(found, names),
        )

    def switch(source: str, cost: str, gain: str, own: Any) -> tuple[Any, ...]:
        """Show other numbers, of all their methods."""
        found = result(source, own)
        names = evaluations.methods(found) if found else []
        return gr.CheckboxGroup(names, value=names), *draw(source, cost, gain, names, own, None)

    seen, drawn = [source, across, up, some, here, chosen], [facts, plot, table]
    # the queue is for those who wait for the device
    fast: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last",
                            "queue": False}  # fmt: skip
    gr.on([across.input, up.input, some.input], draw, seen, drawn, api_name="compare_draw", **fast)
    source.input(switch, [source, across, up, here], [some, *drawn], api_name="compare_switch",
                 **fast)  # fmt: skip
    for button, full in ((every, True), (none, False)):
        button.click(
            lambda source, own, full=full: evaluations.methods(result(source, own)) if full else [],
            [source, here], some, api_visibility="private", **fast,
        ).then(draw, seen, drawn, api_visibility="private", **fast)  # fmt: skip

    def load(label: str, source: str, own: Any) -> tuple[Any, ...]:
        """Put a setting into the tab "Generate"."""
        with told():
            found = evaluations.setting(result(source, own), label)
        offered = form.methods()
        if found["method"] not in [name for _, name in offered]:
            # one that was found by search
            offered = [*offered, (label, found["method"])]
        method = gr.Dropdown(choices=offered, value=found["method"])
        keep = gr.skip() if found["keep"] is None else found["keep"]
        text = f"**{label}** is loaded into the tab “Generate”."
        return label, text, gr.Button(interactive=True), method, keep, found["settings"]

    into = [chosen, loaded, go, *(app.fields[name] for name in ("method", "keep", "settings"))]

    def of_event(event: gr.EventData, source: str, own: Any) -> tuple[Any, ...]:
        """Load the setting that was chosen in the plot or in the table."""
        return load(event.label, source, own)

    def mark(source: str, cost: str, gain: str, names: list[str], own: Any, label: Any) -> Any:
        """Draw the plot anew; the table stays as it was sorted."""
        found = result(source, own)
        return gr.skip() if found is None else front.picture(found, cost, gain, names, label)

    # "always_last" would forget which one was chosen while another choice is under way
    each = {**fast, "trigger_mode": "multiple"}
    for place in (plot, table):
        place.choose(of_event, [source, here], into, api_visibility="private", **each).then(
            mark, seen, plot, api_visibility="private", **fast
        )
    go.click(lambda: gr.Tabs(selected="generate"), None, app.tabs, api_visibility="private", **fast)

    def measure(
        names: list[str], keep: float, videos: int, cost: str, gain: str, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Measure, then show what was found."""
        model = app.settings.model
        asked = Request("any", model, app.settings.device)
        asked = evaluations.small(asked, form.trained(model).frames)

        def job(turn: Turn) -> Any:
            page = Page(turn)
            loaded = app.runner.model(asked, page)
            with page.steps("measuring"):
                return evaluations.measure(loaded, asked, names, keep, int(videos), page)

        def begin() -> Iterator[Any]:
            evaluations.check(names, keep, videos)
            return app.runner.work(request.session_hash or "", job)

        def shown(found: Any) -> tuple[Any, ...]:
            return status_of("Measured."), found, HERE, *switch(HERE, cost, gain, found)

        yield from reported(begin, shown, (gr.skip(),) * 6)

    event = start.click(
        measure, [tried, keep, videos, across, up], [state, here, source, some, *drawn],
        show_progress="full", show_progress_on=[state], api_name="measure", **app.device,
    )  # fmt: skip
    stops(app, stop, event, state)


def _nothing(text: str) -> str:
    return f'<div class="empty">{text}</div>'


def _table(result: Any, names: list[str]) -> str:
    """Return the table of some methods."""
    if result is None:
        return ""
    return sortable.table(*evaluations.table(result, names), "All settings")
