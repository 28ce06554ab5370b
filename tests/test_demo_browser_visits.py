"""The demo page in a real browser: stop, wrong input, two visitors, keys, files left behind."""

import re
import time

import pytest

from tests.browser import (
    STATUS,
    done,
    enter,
    generate,
    long,
    more,
    opened,
    served,
    shoot,
    told,
    visit,
)
from tests.tiny_wan import save


@pytest.fixture(scope="module")
def browser():
    with opened() as browser:
        yield browser


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """The folder for temporary files of the server."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def address(browser, tiny, scratch):
    with served("--model", tiny, "--model", "shapes", scratch=scratch) as address:
        yield address
    assert not list(scratch.glob("dit-sparse-demo-*")), "the server left files behind"


@pytest.fixture
def page(browser, address):
    with visit(browser, address) as page:
        yield page


def test_stop(page):
    """A running generation ends between two steps, and the next one runs."""
    long(page)
    assert page.locator("#status img").get_attribute("alt")
    page.locator("#stop").click()
    told(page, "Stopped", 20)
    page.reload()
    page.wait_for_selector("#go")
    generate(page)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("prompt", "  ", "the prompt is empty"),
        ("prompt", "a " * 200, "300 are the most"),
        ("size", "70 x 64", "70 x 64 (height x width) is not offered"),
        ("size", "large", "must be height x width"),
        ("frames", "6", "frames 6 is not offered by this model; nearest: 5"),
        ("frames", "100000", "must be a whole number from 1 to 129"),
    ],
)
def test_wrong_input(page, field, value, says):
    """What cannot work is said at once, beside its field; nothing starts."""
    more(page)
    enter(page, field, value)
    page.locator("#go").click()
    page.get_by_text(re.compile(re.escape(says), re.IGNORECASE)).first.wait_for()
    assert page.locator(STATUS).inner_text().startswith("Choose a prompt")


def test_two_visitors(browser, address):
    """The second one waits, sees where in the queue it is, and is served when the first is done."""
    with visit(browser, address) as first, visit(browser, address) as second:
        long(first)
        second.locator("#go").click()
        second.get_by_text(re.compile(r"queue: 1\s*/\s*1")).wait_for()
        shoot(second, "waiting")
        first.locator("#stop").click()
        told(first, "Stopped", 20)
        told(second, "Done")
        # and who stops waiting is not served
        first.locator("#go").click()
        told(first, "dense: step 1 of 50")
        second.locator("#go").click()
        second.get_by_text(re.compile(r"queue: 1\s*/\s*1")).wait_for()
        second.locator("#stop").click()
        told(second, "Stopped", 20)


def test_who_leaves_takes_the_files_along(browser, address, scratch):
    def files():
        return list(scratch.glob("dit-sparse-demo-*/videos/*/*"))

    deadline = time.monotonic() + 60
    while files() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not files(), "those of earlier visitors"
    with visit(browser, address) as page:
        generate(page)
        assert len(files()) == 3
    deadline = time.monotonic() + 60
    while files() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not files()


def test_keys_reach_everything(page):
    """Tab alone goes from the top to the button; Enter in the form's order is enough."""
    page.locator("body").focus()
    seen, name = [], "const now = document.activeElement; now.innerText || now.ariaLabel"
    while len(seen) < 40 and (not seen or seen[-1] != "Generate" or len(seen) < 8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(f"() => {{ {name.replace('; ', '; return ')}; }}"))
    assert seen[-1] == "Generate", seen
    page.keyboard.press("Enter")
    done(page)


def test_a_folder_that_was_named_is_kept(browser, tiny, tmp_path):
    kept = tmp_path / "kept"
    with (
        served("--model", tiny, "--out", str(kept), scratch=tmp_path) as address,
        visit(browser, address) as page,
    ):
        generate(page)
    assert len(list(kept.rglob("*.mp4"))) == 3
