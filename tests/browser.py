"""A running demo page and a browser to visit it with."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCREENSHOTS = Path(os.environ.get("DIT_SPARSE_SCREENSHOTS", ROOT / "build" / "screenshots"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
WAIT = 120_000  # ms; for a busy machine
# of a generation that nobody waits for: some twenty seconds on an idle machine
LONG, LARGE = 129, (96, 96)
# any of its steps: a busy browser may never show the first one
LONG_RUNS = r"dense: step \d+ of 50"
STATUS = "#status .said p"


@contextmanager
def opened() -> Iterator[Any]:
    """Give a browser of this machine; without one the tests are skipped."""
    pytest.importorskip("gradio", reason="no gradio: pip install -e '.[test]'")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(*options: str, scratch: Path) -> Iterator[str]:
    """Run `dit-sparse demo` with options; gives the page's address.

    scratch: where it puts temporary files.
    """
    words = [sys.executable, "-m", "dit_sparse.cli", "demo", *options]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(scratch)}
    # its errors are shown by pytest when a test fails
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            ready, _, _ = select.select([server.stdout], [], [], WAIT / 1000)
            line = server.stdout.readline() if ready else "(nothing)"
            assert "the page is at http" in line, f"the page did not start: {line!r}"
            yield line.split()[4]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


@contextmanager
def visit(browser: Any, address: str, size: dict = DESKTOP, **options: Any) -> Iterator[Any]:
    """Open the page as a new visitor; fails when its scripts did, or when it asked others."""
    context = browser.new_context(viewport=size, **options)
    context.set_default_timeout(WAIT)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda sent: wrong.append(sent.url) if _elsewhere(sent.url, address) else 0)
    try:
        page.goto(address)
        page.wait_for_selector("#go")
        yield page
    finally:
        context.close()
    assert not wrong


def shoot(page: Any, name: str, **options: Any) -> Path:
    """Keep a picture of the page among the artefacts of the test run."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    file = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=file, animations="disabled", **options)
    return file


def more(page):
    page.get_by_role("button", name="Size, steps, seed, model").click()


def enter(page, field, text):
    """Type into a field, and leave it."""
    place = page.locator(f"#field-{field} :is(textarea, input:not([type=range]))")
    place.fill(text)
    if field != "prompt":  # there it would start the generation
        place.press("Enter")
    place.press("Tab")


def choose(page, field, text, sign):
    """Enter a choice until `sign` is true: its list may not have been there yet."""
    for _ in range(6):
        enter(page, field, text)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if page.evaluate(sign):
                return
            time.sleep(0.1)
    raise AssertionError(f"{field} did not become {text}")


def long(page):
    """Start a generation that nobody will wait for; returns when it has the device."""
    more(page)
    enter(page, "size", "{} x {}".format(*LARGE))
    enter(page, "frames", str(LONG))
    enter(page, "steps", "50")
    page.locator("#go").click()
    told(page, LONG_RUNS)


def told(page, text, seconds=120):
    page.wait_for_function(
        "([where, what]) => document.querySelector(where)?.innerText.match(what)",
        arg=[STATUS, text],
        timeout=seconds * 1000,
    )


def generate(page):
    """Press the button and wait until the videos can play."""
    page.locator("#go").click()
    done(page)


def done(page):
    told(page, "Done")
    page.wait_for_function(
        "[...document.querySelectorAll('#player video')].every((video) => video.readyState >= 3)"
    )


def _elsewhere(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))
