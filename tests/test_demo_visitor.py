"""The tabs "Look inside" and "Compare" through the page's own client."""

import re

import pytest

from dit_sparse.demos import form

pytest_plugins = "tests.demo_page"
MAP = "frame by frame"


def look(client, folder, **changes):
    """Press the button "Look inside"; returns the status and the four pictures."""
    values = {
        "prompt": "a red circle", "method": "pisa", "keep": 0.5, "steps": 2, "size": form.OWN,
        "frames": form.OWN, "seed": 0, "settings": "", "model": str(folder), **changes,
    }  # fmt: skip
    told = client.predict(MAP, *(values[name] for name in form.FIELDS), api_name="/look")
    return told[0], told[-4:], told[1:-4]


def test_look_inside(client, tiny):
    """One generation; then another head, patch and map at once, from what is kept."""
    status, (numbers, places, maps, heads), choices = look(client, tiny)
    assert "Done" in status and "pisa" in numbers and 'data-patch="1,4,4"' in places
    assert [len(radio["choices"]) for radio in choices[:3]] == [2, 2, 2]
    assert [slider["maximum"] for slider in choices[3:]] == [2, 7, 7]
    assert "<img" in maps and "<table>" in heads
    again = client.predict(0, 1, 1, 0, 7, 2, "in the method's own order", api_name="/look_show")
    assert 'data-patch="0,7,2"' in again[1] and again[1] != places and again[2] != maps
    # the tables are of all heads: only the mark moves
    assert re.sub(' aria-current="true"', "", again[3]) == re.sub(' aria-current="true"', "", heads)


WRONG = [({"prompt": " "}, "prompt"), ({"frames": "7"}, "frames"),
         ({"size": "9999 x 9999"}, "pixels"), ({"model": "other"}, "other")]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=str)
def test_wrong_settings_are_told(client, tiny, changes, words):
    """In the page, or by the field itself; the next visitor is served."""
    from gradio_client.exceptions import AppError

    try:
        told = look(client, tiny, **changes)[0]
        assert 'role="alert"' in told
    except AppError as error:
        told = str(error)
    assert words in told and "Traceback" not in told


def test_compare(client):
    """The evaluation beside the model is shown; axes and filter change it."""
    source, here = "shipped", "measured here"
    methods, told, plot, table = client.predict(source, "time", "PSNR",
                                                api_name="/compare_switch")  # fmt: skip
    assert methods["value"] == ["draft", "mixed", "pisa"] and "2 videos" in told
    assert plot.count("data-label") == table.count("data-label") == 5
    _, some, few = client.predict(source, "share of attention", "PSNR", ["pisa"],
                                  api_name="/compare_draw")  # fmt: skip
    assert some.count("data-label") == few.count("data-label") == 2
    assert client.predict(here, "time", "PSNR", api_name="/compare_switch")[3] == ""


def test_measure_here(client):
    """What is measured now takes the place of what shipped."""
    status, source, methods, told, plot, table = client.predict(
        ["pisa", "draft"], 0.5, 1, "time", "PSNR", api_name="/measure"
    )
    assert "Measured" in status and source == "measured here"
    assert methods["value"] == ["draft", "pisa"] and "1 video of 1 prompt" in told
    assert "pisa keep=0.5" in plot and "draft keep=0.5" in table
    refused = client.predict([], 0.5, 1, "time", "PSNR", api_name="/measure")[0]
    assert 'role="alert"' in refused and "0 methods" in refused
