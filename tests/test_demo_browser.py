"""The demo page in a real browser: what a generation shows, at every width, in light and dark.

Screenshots lie in `build/screenshots` afterwards; DIT_SPARSE_SCREENSHOTS names another folder.
"""

import os
import re

import pytest

from tests.browser import DESKTOP, PHONE, choose, enter, generate, more, shoot, visit

pytest_plugins = "tests.demo_page"


@pytest.fixture(scope="module")
def result(browser, address):
    """The page of a visitor whose comparison is there; by the wish for less motion it rests."""
    with visit(browser, address, reduced_motion="reduce") as page:
        more(page)
        steps = "document.querySelector('#field-steps input').value === '12'"
        choose(page, "model", "shapes", steps)
        page.locator("#examples button").first.click()
        enter(page, "frames", "17")
        enter(page, "steps", "2")
        more(page)
        generate(page)
        yield page


def test_the_page_is_there_at_once(page):
    """The first paint with content in it, best of three, comes within two seconds."""
    painted = []
    # where more works than there are cores, each has its share of them
    share = max(1, os.getloadavg()[0] / (os.cpu_count() or 1))
    for _ in range(3):
        page.reload()
        page.wait_for_selector("#go")
        entry = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        painted.append(page.evaluate(entry))
    assert min(painted) < 2000 * share
    assert page.get_by_role("tab").all_inner_texts() == ["Generate", "Look inside", "Compare"]
    shoot(page, "start")


def test_nothing_jumps(page):
    """What appears takes a place that was kept for it."""
    page.evaluate(
        "window.moved = 0; new PerformanceObserver((list) => list.getEntries().forEach((entry) => {"
        "if (!entry.hadRecentInput) window.moved += entry.value; })).observe("
        "{ type: 'layout-shift' })"
    )
    top = page.locator("#player").bounding_box()["y"]
    generate(page)
    assert page.locator("#player").bounding_box()["y"] == pytest.approx(top, abs=1)
    assert page.evaluate("window.moved") < 0.1


def test_generate(result):
    """Three videos of one length; numbers and charts; the line that makes them again."""
    videos = result.locator("#player video")
    assert videos.count() == 3
    lengths = videos.evaluate_all("all => all.map((video) => video.duration)")
    assert lengths == pytest.approx([17 / 8] * 3, abs=0.02)
    assert re.search(r"\d dB|identical", result.locator("#numbers").inner_text())
    assert result.locator("#numbers svg[role=img][aria-label]").count() == 2
    result.get_by_role("button", name="Make it again").click()
    result.get_by_text("dit-sparse generate").first.wait_for()


def test_the_videos_play_in_step(result):
    player = result.locator("#player")
    button, frame = player.get_by_role("button"), player.get_by_role("slider", name="Frame")
    times = "all => all.map((video) => video.currentTime)"
    assert button.inner_text() == "Play"
    # by keys alone: play, pause, then go to the fifth frame
    button.focus()
    result.keyboard.press("Enter")
    result.wait_for_function("document.querySelector('#player video').currentTime > 0")
    assert button.inner_text() == "Pause"
    result.wait_for_timeout(3000)  # more than once around
    at = player.locator("video").evaluate_all(times)
    assert max(at) - min(at) < 1.5 / 8
    button.focus()
    result.keyboard.press("Enter")
    frame.focus()
    result.keyboard.press("Home")
    for _ in range(4):
        result.keyboard.press("ArrowRight")
    at = player.locator("video").evaluate_all(times)
    assert at == pytest.approx([4.5 / 8] * 3, abs=1e-3)
    assert player.locator("output").inner_text() == "5 / 17"
    assert frame.get_attribute("aria-valuetext") == "frame 5 of 17"


def test_download(result, tmp_path):
    for number in range(3):
        with result.expect_download() as waiting:
            result.locator("#player a").nth(number).click()
        file = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(file)
        assert file.suffix == ".mp4" and file.stat().st_size > 500
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(result, size, scheme):
    """No scrolling sideways, nothing without a name; the colours follow the visitor's."""
    result.set_viewport_size(size)
    result.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    for number in (2, 1, 0):
        result.get_by_role("tab").nth(number).click()
        result.wait_for_timeout(200)
        assert result.evaluate("document.documentElement.scrollWidth") <= size["width"], number
    nameless = result.evaluate(
        "[...document.querySelectorAll('img:not([alt]), video:not([aria-label]), "
        "svg[role=img]:not([aria-label]):not([aria-hidden=true])')].length"
    )
    assert nameless == 0
    shoot(result, f"demo-generate-{'phone' if size is PHONE else 'desktop'}-{scheme}",
          full_page=True)  # fmt: skip
    ground = result.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert (bright < 80) == (scheme == "dark")
