"""Colours, fonts and spacing of the demo page; light, dark and at phone width."""

from __future__ import annotations

from typing import Any

# nothing is fetched from elsewhere: the page looks the same without a network
SANS = ("system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace")

# heights are given where something appears later: nothing below it moves
CSS = """
.gradio-container { max-width: min(1240px, 100vw) !important; min-width: 0 !important;
  margin: 0 auto !important; }
.gradio-container > .main { max-width: 100%; min-width: 0; }
.html-container { padding: 10px 0 !important; }
#head h1 { font-size: 1.5rem; font-weight: 650; margin: .2rem 0 0; }
#head p { color: var(--body-text-color-subdued); margin: .1rem 0 .3rem; }
.intro p { max-width: 62rem; }
#examples button { text-align: left; }
/* the choices of a recording come with it, for the keyboard too */
#look:has(#look-places .empty) > :not(:has(#look-start), #look-state, #look-places) {
  display: none; }
:focus-visible { outline: 3px solid var(--primary-500) !important; outline-offset: 2px; }

.now { display: flex; gap: 1rem; align-items: center; min-height: 84px; }
.now .preview { flex: 0 0 216px; height: 72px; border-radius: 8px; overflow: hidden;
  background: var(--background-fill-secondary); }
.now .preview img { width: 100%; height: 100%; object-fit: cover; display: block; margin: 0; }
.now .said { flex: 1; min-width: 0; }
.now p { margin: 0 0 .4rem; min-height: 2.8em; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.now .progress { height: 10px; border-radius: 5px; overflow: hidden;
  background: var(--background-fill-secondary); }
.now .progress div { height: 100%; background: var(--primary-500); }
.now[role=alert] p { color: var(--error-text-color, #b91c1c); font-weight: 600; }
.now[role=alert] .progress { visibility: hidden; }

.trio { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .8rem; }
.trio figure { margin: 0; min-width: 0; }
.trio figcaption { font-weight: 600; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; margin-bottom: .3rem; }
.trio video, .trio img { width: 100%; height: auto; display: block; border-radius: 8px;
  background: #000; margin: 0; }
.trio .blank { width: 100%; height: auto; display: block; border-radius: 8px; }
.trio .seen { fill: var(--primary-500); } .trio .unseen { fill: var(--neutral-400); opacity: .22; }
.trio .looks { fill: none; stroke: var(--body-text-color); stroke-width: .3; }
.trio .dark { fill: #000; } .trio .ring { fill: none; stroke: #d96; stroke-width: .15; }
.trio .note, .trio .get { font-size: .8rem; margin: .3rem 0 0; }
.trio .note { min-height: 2.5em; line-height: 1.25; color: var(--body-text-color-subdued); }
.trio .get { height: 1.2rem; margin: 0; overflow: hidden; white-space: nowrap; }
.trio .get a { padding: 0; }
.bar-of-controls { display: flex; align-items: center; gap: .8rem; min-height: 44px;
  margin-top: .4rem; }
.bar-of-controls button { min-width: 5.5rem; min-height: 40px; border-radius: 8px; cursor: pointer;
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color);
  border: 1px solid var(--border-color-primary); }
.bar-of-controls input { flex: 1; min-width: 0; accent-color: var(--primary-500); }
.bar-of-controls output { min-width: 4.5rem; text-align: right;
  font-variant-numeric: tabular-nums; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: .8rem;
  margin: 0 0 .8rem; }
.tiles > div { border: 1px solid var(--border-color-primary); border-radius: 8px;
  padding: .5rem .8rem; }
.tiles dt { font-size: .85rem; color: var(--body-text-color-subdued); }
.tiles dd { font-size: 1.25rem; font-weight: 650; margin: 0; font-variant-numeric: tabular-nums; }
.tiles .what { font-size: .8rem; color: var(--body-text-color-subdued); font-weight: 400; }
.empty { display: grid; place-items: center; min-height: 320px; border-radius: 8px; opacity: .75;
  border: 1px dashed var(--border-color-primary); padding: 1em; text-align: center; }
.blank-numbers { min-height: 240px; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.2rem; }
.chart { margin: 0; } .chart figcaption { font-weight: 600; }
.chart svg { width: 100%; height: auto; overflow: visible; }
.chart text { fill: var(--body-text-color); font-size: 13px; }
.chart .small { font-size: 10.5px; fill: var(--body-text-color-subdued); }
.chart .bar0 { fill: var(--neutral-400); } .chart .bar1 { fill: var(--primary-500); }
.chart .rule { stroke: var(--border-color-primary); stroke-width: 1; }
.chart .curve { fill: none; stroke: var(--primary-500); stroke-width: 2.5; }
.chart .dot { fill: var(--primary-500); }
.notes { font-size: .85rem; color: var(--body-text-color-subdued); padding-left: 1.1rem; }

@media (max-width: 640px) {
  .trio { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .charts { grid-template-columns: 1fr; }
  .now { flex-direction: column; align-items: stretch; gap: .4rem; }
  .now .preview { flex: 0 0 52px; width: 156px; }
  .now .said { flex: 0 0 auto; } .now p { min-height: 4.2em; }
  .tiles { gap: .4rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tiles > div { padding: .4rem .5rem; } .tiles dd { font-size: 1.15rem; }
}
"""


def theme() -> Any:
    """Return the theme of the page."""
    from gradio.themes import Default

    # gradio's own grey is too light to read on white
    subdued = {"body_text_color_subdued": "*neutral_500", "block_info_text_color": "*neutral_500"}
    base = Default(primary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONO)
    return base.set(**subdued)
