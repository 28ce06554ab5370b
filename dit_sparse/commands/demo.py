"""`dit-sparse demo`: the page in a browser."""

from __future__ import annotations

import re
import socket
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

from dit_sparse.commands.options import MODEL, OUTPUT, Debug, Device, option
from dit_sparse.errors import ArgumentError, MissingDependencyError

SERVER = "Server"


def demo(
    model: Annotated[
        list[str] | None,
        option(
            MODEL,
            "[b]shapes[/b] (built in, default), a hub id or a pipeline folder; repeatable: "
            "visitors choose.",
        ),
    ] = None,
    device: Device = "auto",
    host: Annotated[
        str, option(SERVER, "Address to listen on (default 127.0.0.1: this machine alone).")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, option(SERVER, "Port (default: the first free one from 7860).")
    ] = None,
    share: Annotated[
        bool, option(SERVER, "Also serve through a public link of gradio.live.", "--share")
    ] = False,
    auth: Annotated[
        str | None,
        option(SERVER, "Ask visitors for this name and password.", metavar="USER:PASSWORD"),
    ] = None,
    limit: Annotated[
        float,
        option(
            SERVER,
            "Seconds that one visitor's work may have the device, loading a model not counted "
            "(default 900).",
        ),
    ] = 900,
    out: Annotated[
        Path | None,
        option(
            OUTPUT,
            "Keep a copy of every video in this folder (default: they go with their visitor).",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Open a page that shows what sparse attention does: generate, look inside, compare."""
    models = tuple(dict.fromkeys(model or ["shapes"]))
    _check(models, device, host, port, auth, limit, out)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f'the page needs gradio, which is not there ({error}): pip install "dit-sparse[demo]"'
        ) from None
    from dit_sparse.demos.app import Settings, serve

    with tempfile.TemporaryDirectory(prefix="dit-sparse-demo-") as scratch:
        folder = (Path(scratch) / "videos").resolve()
        settings = Settings(folder, models, device, out, limit, debug)
        options: dict[str, Any] = {"server_name": host, "server_port": port, "share": share}
        if auth is not None:
            name, _, word = auth.partition(":")
            options["auth"] = (name, word)
        with serve(settings, Path(scratch), **options) as app:
            print(f"the page is at {app.page.local_url} (Ctrl-C ends it)", flush=True)
            if app.page.share_url:
                print(f"and for everybody at {app.page.share_url}", flush=True)
            threading.Event().wait()


def _check(
    models: tuple[str, ...], device: str, host: str, port: int | None, auth: str | None,
    limit: float, out: Path | None,
) -> None:  # fmt: skip
    """Raise `ArgumentError` for the first argument that cannot work."""
    from dit_sparse.commands.model import Trained, device_of, locate
    from dit_sparse.commands.request import folder_for

    for name in models:
        Trained.read(locate(name))
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ArgumentError(f"--device {device} is not known; use auto, cpu or cuda")
    device_of(device)
    if port is not None and not 0 < port < 65536:
        raise ArgumentError(f"--port {port} must be from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port or 0), family=family).close()
    except OSError as error:
        place = f"--host {host}" + (f" --port {port}" if port else "")
        raise ArgumentError(f"{place} cannot be listened on: {error.strerror or error}") from None
    if auth is not None and not re.fullmatch(r"[^:]+:.+", auth):
        raise ArgumentError("--auth must be USER:PASSWORD, both not empty")
    if not limit > 0:
        raise ArgumentError(f"--limit {limit:g} must be above 0, in seconds; inf = none")
    if out is not None:
        folder_for(out)
