"""The tabs "Look inside" and "Compare" in a real browser: by pointer, by keys, at phone width."""

import pytest

from tests.browser import DESKTOP, PHONE, shoot, visit
from tests.demo_material import CASES

pytest_plugins = "tests.demo_page"


@pytest.fixture(scope="module")
def looked(browser, address):
    """The page of a visitor who looked inside."""
    with visit(browser, address) as page:
        open_tab(page, "Look inside")
        assert not page.locator("#look-layer").is_visible(), "nothing to choose from yet"
        page.locator("#look-start").click()
        page.locator("#look-places img").first.wait_for()
        page.wait_for_function("document.querySelector('#look-maps img')?.complete")
        yield page


def open_tab(page, name):
    page.get_by_role("tab", name=name).click()


def wait_for_patch(page, patch):
    page.wait_for_function(
        "(want) => document.querySelector('#look-places .places')?.dataset.patch === want",
        arg=patch,
    )


def test_click_and_keys_choose_a_patch(looked):
    """A click takes the place under it; arrow keys go on from there, and the focus stays."""
    page = looked
    picture = page.locator("#look-places img[data-frame='2']").first
    before = picture.get_attribute("src")
    box = picture.bounding_box()
    # 8 x 8 places: the middle of row 1, column 6
    picture.click(position={"x": box["width"] * 6.5 / 8, "y": box["height"] * 1.5 / 8})
    wait_for_patch(page, "2,1,6")
    assert page.locator("#look-places img[data-frame='2']").first.get_attribute("src") != before
    assert page.get_by_label("number input for Column").input_value() == "6"
    for key, patch in (("ArrowDown", "2,2,6"), ("ArrowRight", "2,2,7"), ("ArrowRight", "2,2,7"),
                       ("ArrowUp", "2,1,7")):  # fmt: skip
        page.keyboard.press(key)
        wait_for_patch(page, patch)
        assert page.evaluate("document.activeElement.dataset.frame") == "2"
    # the fields below do the same
    field = page.get_by_label("number input for Row")
    field.fill("5")
    field.press("Tab")
    wait_for_patch(page, "2,5,7")


def test_another_head(looked):
    page = looked
    maps = page.locator("#look-maps img")
    before = maps.first.get_attribute("src")
    changed = "(old) => document.querySelector('#look-maps img').src !== old"
    page.locator("#look-head label").nth(1).click()
    page.wait_for_function(changed, arg=before)
    assert "head 1" in maps.first.get_attribute("alt")
    before = maps.first.get_attribute("src")
    page.get_by_label("in the method's own order").click()
    page.wait_for_function(changed, arg=before)
    # a cell of the table is a head, too
    page.get_by_role("button", name="All heads in numbers").click()
    page.locator("#look-heads button[aria-label^='layer 0, head 0']").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "document.querySelector('#look-maps img').alt.includes('layer 0, head 0')"
    )
    assert page.evaluate("document.activeElement.ariaLabel").startswith("layer 0, head 0")


def test_a_wrong_setting_is_told_there(page):
    page.locator("textarea").first.fill(" ")
    open_tab(page, "Look inside")
    page.locator("#look-start").click()
    page.locator("#look-state [role=alert]").wait_for()
    assert "prompt" in page.locator("#look-state").inner_text()


def test_a_dot_loads_its_setting(page):
    """By keys alone: its numbers when it has the focus, its setting when it is pressed."""
    open_tab(page, "Compare")
    points = page.locator("#compare-plot .point")
    assert points.count() == len(CASES)
    point = page.locator("#compare-plot .point[data-label='draft keep=0.5']")
    point.focus()
    assert "28.5 dB" in page.locator("#compare-plot .readout").inner_text()
    page.keyboard.press("Enter")
    page.locator("#compare-plot .point[aria-pressed=true]").wait_for()
    assert "draft keep=0.5" in page.locator("#compare-loaded").inner_text()
    assert page.evaluate("document.activeElement.dataset.label") == "draft keep=0.5"
    page.locator("#compare-open").click()
    page.locator("#go").wait_for()
    assert page.get_by_label("Method", exact=True).first.input_value().startswith("DraftAttention")
    assert page.get_by_label("number input for Density").input_value() == "0.5"


def test_table_sorts_and_loads(page):
    open_tab(page, "Compare")
    table = page.locator("#compare-table")
    names = "all => all.map((row) => row.cells[0].innerText)"
    by_time = [label for label, *_ in sorted(CASES, key=lambda case: case[2])]
    title = table.get_by_role("button", name="time, s")
    title.click()
    assert table.locator("tbody tr").evaluate_all(names) == by_time[::-1]
    title.focus()
    page.keyboard.press("Enter")
    assert table.locator("tbody tr").evaluate_all(names) == by_time
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("time")
    table.get_by_role("button", name="shapes--mixed").click()
    page.locator("#compare-plot .point.mixed[aria-pressed=true]").wait_for()
    # loading a setting leaves the table as it was sorted
    assert table.locator("tbody tr").evaluate_all(names) == by_time


def test_filter_and_axes(page):
    open_tab(page, "Compare")
    page.get_by_role("button", name="Filter by method").click()
    page.locator("#compare-methods").get_by_text("draft").click()
    count = "(n) => document.querySelectorAll('#compare-plot .point').length === n"
    page.wait_for_function(count, arg=3)
    assert page.locator("#compare-table tbody tr").count() == 3
    page.get_by_text("share of attention", exact=True).click()
    page.wait_for_function(
        "document.querySelector('#compare-plot .across').innerText.includes('share')"
    )
    page.get_by_role("button", name="None").click()
    page.wait_for_function(count, arg=0)
    page.get_by_role("button", name="All", exact=True).click()
    page.wait_for_function(count, arg=5)


def test_measure_and_stop(page):
    open_tab(page, "Compare")
    page.get_by_role("button", name="Measure here").click()
    page.locator("#compare-start").click()
    page.locator("#compare-stop").click()
    page.get_by_text("Stopped.").wait_for()
    page.locator("#compare-start").click()
    page.wait_for_function("document.querySelectorAll('#compare-plot .point').length === 2")
    assert page.get_by_label("measured here").is_checked()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_looks(looked, size, scheme):
    """No scrolling sideways, every picture with words, and text that can be read on its ground."""
    looked.set_viewport_size(size)
    looked.emulate_media(color_scheme=scheme)
    name = f"{'phone' if size is PHONE else 'desktop'}-{scheme}"
    shown = ("look", "Look inside", "#look-places img"), ("compare", "Compare", ".point")
    for tab, title, picture in shown:
        open_tab(looked, title)
        looked.locator(picture).first.wait_for()
        assert looked.evaluate("document.documentElement.scrollWidth") <= size["width"], tab
        assert looked.locator("img:not([alt])").count() == 0
        shoot(looked, f"{tab}-{name}", full_page=True)
    for place in ("#compare-plot .readout", "#compare-table td button"):
        style = looked.locator(place).first.evaluate("e => getComputedStyle(e).color")
        bright = sum(map(int, style[style.index("(") + 1 : -1].split(",")[:3])) / 3
        assert (bright > 128) == (scheme == "dark"), place
