"""The tab "Compare": how near each setting comes to dense, and at what cost.

The plot and the table show the evaluation that ships with the model, or a small one made here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dit_sparse.commands.request import Request
from dit_sparse.demos import chart, evaluations, form, front, sortable
from dit_sparse.demos.runner import Page, Turn
from dit_sparse.demos.status import reported, status_of, stops, told
from dit_sparse.quality.results import Result

INTRO = """
Every dot is one method at one budget: **higher is nearer to the dense video, further left is less
work**. No other setting beats those on the dashed line in both. To find yours, say how alike the
videos must be (differences are hard to see from 30 dB on) and take the leftmost dot above that.
Choose it to see it in the tab “Generate”.
"""
MEASURE = """
A small evaluation on this machine: short videos, few steps. It says which way things go;
`dit-sparse eval` says it with intervals.
"""
MEASURED = "Measured: the picture and the table above show it."
UNCHOSEN = "No setting is chosen yet."
SHIPPED, HERE = "shipped", "measured here"
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
.dense small { position: absolute; bottom: 4px; right: 4px }
.point { position: absolute; width: 16px; height: 16px; padding: 0; border: 2px solid transparent;
  border-radius: 50%; transform: translate(-50%, 50%); cursor: pointer;
  background: var(--colour); background-clip: padding-box }
.point.front, .ring { border-color: currentColor }
.mixed { border-radius: 2px }
.point:hover, .point:focus-visible { z-index: 2; outline: 3px solid var(--color-accent);
  outline-offset: 2px }
.point[aria-pressed="true"] { z-index: 1; outline: 3px solid currentColor; outline-offset: 2px }
.readout { min-height: 2.8em; margin: .6em 0 0; font-variant-numeric: tabular-nums }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: .9em }
.key { display: inline-flex; align-items: center; gap: 5px }
.key i { width: 11px; height: 11px; border-radius: 50%; background: var(--colour) }
.key i.mixed { border-radius: 2px }
.key i.ring { background: none; border: 2px solid currentColor }
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


@dataclass(frozen=True)
class Parts:
    """The components of the tab.

    here: the evaluation made here, None before. chosen: the label of the setting that was chosen.
    view: source, cost, likeness and methods, which say what is drawn. drawn: facts, plot, table.
    """

    here: gr.State
    chosen: gr.State
    view: tuple[gr.Radio, gr.Radio, gr.Radio, gr.CheckboxGroup]
    every: gr.Button
    none: gr.Button
    drawn: tuple[gr.Markdown, gr.HTML, gr.HTML]
    loaded: gr.Markdown
    go: gr.Button

    @property
    def seen(self) -> list[Any]:
        """What a drawing needs to know."""
        return [*self.view, self.here, self.chosen]


@dataclass(frozen=True)
class Measuring:
    """The components of a measurement made here; asked: methods, budget, videos."""

    asked: list[Any]
    start: gr.Button
    stop: gr.Button
    state: gr.HTML


# of events that need no device; the queue is for those who wait for it
FAST: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "queue": False}


def tab(app: Any) -> None:
    """Fill the tab."""
    shipped = evaluations.saved(app.settings.model)
    gr.Markdown(INTRO, elem_classes="intro")
    parts = _parts(shipped)
    measuring = _measuring(shipped)
    _on_view(shipped, parts)
    _on_choice(app, shipped, parts)
    _on_measure(app, parts, measuring)


def _parts(shipped: Result | None) -> Parts:
    """Add the components that show an evaluation."""
    names = evaluations.methods(shipped) if shipped else []
    cost, gain = front.cost_of(shipped), next(iter(front.GAINS))
    facts, plot, table = draw(shipped, cost, gain, names)
    with gr.Row():
        source = gr.Radio([SHIPPED, HERE], value=SHIPPED, label="Numbers",
                          elem_id="compare-source")  # fmt: skip
        across = gr.Radio(list(front.COSTS), value=cost, label="Cost",
                          elem_id="compare-cost")  # fmt: skip
        up = gr.Radio(list(front.GAINS), value=gain, label="Likeness", elem_id="compare-gain")
    with gr.Accordion("Filter by method", open=False):
        some = gr.CheckboxGroup(names, value=names, label="Methods", elem_id="compare-methods")
        with gr.Row():
            every, none = gr.Button("All", size="sm"), gr.Button("None", size="sm")
    drawn = (
        gr.Markdown(facts, elem_id="compare-told"),
        gr.HTML(plot, css_template=CSS, js_on_load=PLOT_JS, min_height=420,
                elem_id="compare-plot"),
    )  # fmt: skip
    loaded = gr.Markdown(UNCHOSEN, elem_id="compare-loaded", min_height=56)
    go = gr.Button("Open “Generate”", elem_id="compare-open", interactive=False)
    rows = gr.HTML(table, css_template=sortable.CSS, js_on_load=sortable.JS, min_height=120,
                   elem_id="compare-table")  # fmt: skip
    here, chosen = gr.State(None, time_to_live=3600), gr.State(None)
    return Parts(here, chosen, (source, across, up, some), every, none, (*drawn, rows), loaded, go)


def _measuring(shipped: Result | None) -> Measuring:
    """Add the components of a measurement made here."""
    with gr.Accordion("Measure here", open=shipped is None):
        gr.Markdown(MEASURE)
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
            start = gr.Button("Measure", variant="primary", elem_id="compare-start", min_width=140)
            stop = gr.Button("Stop", elem_id="compare-stop", min_width=140)
        state = gr.HTML(status_of("Nothing is measured yet."), elem_id="compare-state")
    return Measuring([tried, keep, videos], start, stop, state)


def draw(
    found: Result | None, cost: str, gain: str, names: list[str], label: str | None = None
) -> tuple[str, str, str]:
    """Return the facts, the plot and the table of some methods of an evaluation."""
    if found is None:
        return NONE, chart.empty(NONE), ""
    table = sortable.table(*evaluations.table(found, names), "All settings")
    return evaluations.told(found), front.picture(found, cost, gain, names, label), table


def switched(found: Result | None, cost: str, gain: str) -> tuple[Any, ...]:
    """Return the filter and the drawings of an evaluation, with all its methods."""
    names = evaluations.methods(found) if found else []
    return gr.CheckboxGroup(names, value=names), *draw(found, cost, gain, names)


def _on_view(shipped: Result | None, parts: Parts) -> None:
    """Draw anew when the axes, the filter or the source change."""
    source, across, up, some = parts.view

    def view(
        source: str, cost: str, gain: str, names: list[str], own: Any, label: str | None
    ) -> tuple[str, str, str]:
        """Draw what is chosen."""
        return draw(_found(source, own, shipped), cost, gain, names, label)

    def switch(source: str, cost: str, gain: str, own: Any) -> tuple[Any, ...]:
        """Show other numbers, of all their methods."""
        return switched(_found(source, own, shipped), cost, gain)

    def every(source: str, own: Any) -> list[str]:
        """Choose all methods."""
        found = _found(source, own, shipped)
        return evaluations.methods(found) if found else []

    gr.on([across.input, up.input, some.input], view, parts.seen, list(parts.drawn),
          api_name="compare_draw", **FAST)  # fmt: skip
    source.input(switch, [source, across, up, parts.here], [some, *parts.drawn],
                 api_name="compare_switch", **FAST)  # fmt: skip
    private = {**FAST, "api_visibility": "private"}
    for click in (
        parts.every.click(every, [source, parts.here], some, **private),
        parts.none.click(lambda: [], None, some, **private),
    ):
        click.then(view, parts.seen, list(parts.drawn), **private)


def _on_choice(app: Any, shipped: Result | None, parts: Parts) -> None:
    """Load the setting of a dot or a row into the tab "Generate", and say how to ship it."""

    def load(event: gr.EventData, source: str, own: Any) -> tuple[Any, ...]:
        """Load the setting that was chosen in the plot or in the table."""
        label = event.label
        with told():
            found = evaluations.setting(_found(source, own, shipped), label)
        offered = form.methods()
        if found["method"] not in [name for _, name in offered]:
            # one that was found by search
            offered = [*offered, (label, found["method"])]
        method = gr.Dropdown(choices=offered, value=found["method"])
        keep = gr.skip() if found["keep"] is None else found["keep"]
        line = evaluations.enabling(found)
        text = f"**{label}** is loaded into the tab “Generate”. In your own program: `{line}`"
        return label, text, gr.Button(interactive=True), method, keep, found["settings"]

    def mark(source: str, cost: str, gain: str, names: list[str], own: Any, label: Any) -> Any:
        """Draw the plot anew; the table stays as it was sorted."""
        found = _found(source, own, shipped)
        return gr.skip() if found is None else front.picture(found, cost, gain, names, label)

    fields = (app.fields[name] for name in ("method", "keep", "settings"))
    into = [parts.chosen, parts.loaded, parts.go, *fields]
    _, plot, table = parts.drawn
    private = {**FAST, "api_visibility": "private"}
    # "always_last" would forget which one was chosen while another choice is under way
    each = {**private, "trigger_mode": "multiple"}
    for place in (plot, table):
        place.choose(load, [parts.view[0], parts.here], into, **each).then(
            mark, parts.seen, plot, **private
        )
    parts.go.click(lambda: gr.Tabs(selected="generate"), None, app.tabs, **private)


def _on_measure(app: Any, parts: Parts, measuring: Measuring) -> None:
    """Measure when the button is pressed, then show what was found."""

    def measure(
        names: list[str], keep: float, videos: int, cost: str, gain: str, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Measure, then show what was found."""
        model = app.settings.model
        asked = Request("any", model, app.settings.device)
        asked = evaluations.small(asked, form.trained(model).frames)

        def job(turn: Turn) -> Result:
            page = Page(turn)
            loaded = app.runner.model(asked, page)
            with page.steps("measuring"):
                return evaluations.measure(loaded, asked, names, keep, int(videos), page)

        def begin() -> Iterator[Any]:
            evaluations.check(names, keep, videos)
            return app.runner.work(request.session_hash or "", job)

        def shown(found: Result) -> tuple[Any, ...]:
            return status_of(MEASURED), found, HERE, *switched(found, cost, gain)

        yield from reported(begin, shown, (gr.skip(),) * (len(outputs) - 1))

    source, across, up, some = parts.view
    outputs = [measuring.state, parts.here, source, some, *parts.drawn]
    event = measuring.start.click(
        measure, [*measuring.asked, across, up], outputs, show_progress="full",
        show_progress_on=[measuring.state], api_name="measure", **app.device,
    )  # fmt: skip
    stops(app, measuring.stop, event, measuring.state)


def _found(source: str, own: Result | None, shipped: Result | None) -> Any:
    """Return the evaluation that is shown, None without one."""
    return own if source == HERE else shipped
