"""The demo page: `dit-sparse demo`.

Three tabs on one page, one model on one device. A tab is a function `tab(app)` that is called
inside its `gr.Tab` and adds components and events; what tabs share stands in `App`.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from dit_sparse.demos import compare_tab, generate_tab, look_tab, style
from dit_sparse.demos.files import Files
from dit_sparse.demos.runner import Runner

TITLE = "dit-sparse: sparse attention for video models"
HEAD = """<h1>Sparse attention, seen</h1>
<p>Video models get faster when they compute less attention. Try the published methods, look inside
them, compare them.</p>"""
WAITING = 8  # visitors in the queue; the next one is told to come back


@dataclass(frozen=True)
class Settings:
    """How the page is to run.

    out: the folder of its files, the only one that it gives away; nothing else may be in it.
    models: those that visitors may use. keep: a folder for copies of the videos, None: they go
    with their visitor. limit: seconds that one visitor may have the device.
    """

    out: Path
    models: tuple[str, ...] = ("shapes",)
    device: str = "auto"
    keep: Path | None = None
    limit: float = math.inf
    debug: bool = False

    @property
    def model(self) -> str:
        """The model that the page begins with."""
        return self.models[0]


@dataclass
class App:
    """What the tabs share.

    files: `files.new(visitor)` is an empty folder, removed when the visitor goes; a visitor is the
    `session_hash` of a `gr.Request`. tabs: `gr.Tabs(selected=...)` of an output shows another tab:
    "generate", "look" or "compare". fields: the components of the tab "Generate" by name, see
    `form.FIELDS`: as inputs they are the visitor's setting, as outputs they load one. shown: a
    `gr.State` with the `Request` of the visitor's last generation, None before. device: the options
    of an event that uses the runner, `button.click(f, ..., **app.device)`: one such event runs at a
    time.
    """

    settings: Settings
    page: gr.Blocks
    runner: Runner
    files: Files
    tabs: gr.Tabs
    shown: gr.State
    fields: dict[str, Component] = field(default_factory=dict)
    device: dict[str, Any] = field(
        default_factory=lambda: {"concurrency_id": "device", "concurrency_limit": 1}
    )

    @property
    def folder(self) -> Path:
        """The folder of the page's files."""
        return self.settings.out


def build(settings: Settings) -> gr.Blocks:
    """Return the page, not yet served."""
    return assemble(settings).page


def assemble(settings: Settings) -> App:
    """Return the page with what its tabs share."""
    # Gradio's own files of a visitor go after an hour
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(HEAD, elem_id="head")
        # outside of the tabs, which take each child for one of them
        shown = gr.State(None)
        with gr.Tabs(selected="generate") as tabs:
            app = App(
                settings,
                page,
                Runner(settings.device, settings.debug, settings.limit),
                Files(settings.out, settings.keep),
                tabs,
                shown,
            )
            for name, title, fill in (
                ("generate", "Generate", generate_tab.tab),
                ("look", "Look inside", look_tab.tab),
                ("compare", "Compare", compare_tab.tab),
            ):
                with gr.Tab(title, id=name):
                    fill(app)

        def leave(request: gr.Request) -> None:
            app.runner.stop(request.session_hash or "")
            app.files.drop(request.session_hash or "")

        page.unload(leave)
    page.queue(max_size=WAITING, default_concurrency_limit=8)
    return app


@contextmanager
def serve(settings: Settings, scratch: Path, **options: Any) -> Iterator[App]:
    """Serve the page while the block runs; its address is `app.page.local_url`.

    scratch: a folder for what Gradio keeps of its visitors. options: of `Blocks.launch`; it listens
    on 127.0.0.1 unless `server_name` is given.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(scratch / "gradio")
    app = assemble(settings)
    app.page.launch(
        **{"server_name": "127.0.0.1", "share": False, **options},
        quiet=True,
        prevent_thread_lock=True,
        theme=style.theme(),
        css=style.CSS,
        allowed_paths=[str(settings.out)],
        max_file_size="1mb",
        ssr_mode=False,
        footer_links=[],
    )
    try:
        threading.Thread(target=app.runner.warm, args=settings.models[:1], daemon=True).start()
        yield app
    finally:
        app.runner.stop_all()
        app.page.close(verbose=False)
