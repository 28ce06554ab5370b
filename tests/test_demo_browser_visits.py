"""The demo page in a real browser: stop, wrong input, two visitors, keys, files left behind."""

import re
import time

import pytest

from tests.browser import LONG_RUNS, STATUS, done, enter, generate, long, more, shoot, told, visit

pytest_plugins = "tests.demo_page"


@pytest.fixture(scope="module")
def form(browser, address):
    """The page with all fields open."""
    with visit(browser, address) as page:
        more(page)
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
def test_wrong_input(form, field, value, says):
    """What cannot work is said at once, beside its field; nothing starts."""
    place = form.locator(f"#field-{field} :is(textarea, input)").first
    good = place.input_value()
    enter(form, field, value)
    form.locator("#go").click()
    form.get_by_text(re.compile(re.escape(says), re.IGNORECASE)).first.wait_for()
    assert form.locator(STATUS).inner_text().startswith("Choose a prompt")
    enter(form, field, good)


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
        told(first, LONG_RUNS)
        second.locator("#go").click()
        second.get_by_text(re.compile(r"queue: 1\s*/\s*1")).wait_for()
        second.locator("#stop").click()
        told(second, "Stopped", 20)


def test_who_leaves_takes_the_files_along(browser, address, scratch):
    def files():
        try:
            return list(scratch.glob("dit-sparse-demo-*/videos/*/*"))
        except FileNotFoundError:
            # a folder went while it was looked into
            return [scratch]

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
