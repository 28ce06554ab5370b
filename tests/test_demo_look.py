"""The tab "Look inside": what is kept of a generation, and what the page shows of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dit_sparse.commands.loading import loaded
from dit_sparse.commands.request import Request
from dit_sparse.commands.screen import Screen, hushed
from dit_sparse.demos import plan_viewer as viewer
from dit_sparse.demos import recording as recorder
from dit_sparse.errors import ArgumentError
from dit_sparse.inspection.capture import Camera, Where
from dit_sparse.integrations.session import Call
from dit_sparse.media import to_uint8
from tests.demo_material import Reader
from tests.test_eval_probe import GRIDS, METHODS, call
from tests.tiny_wan import save


def seen(grid, name):
    x, plan, out, ctx = call(grid, name, METHODS[name])
    ctx.state["secret"] = torch.zeros(1)
    return Call("transformer", 3, 5, 0, x, plan, out, ctx)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_kept_call_shows_what_the_live_one_did(grid, name):
    """The copy outlives the call: its tensors may be overwritten, its view stays the same."""
    live, patch = seen(grid, name), (1, 2, 3)
    kept = recorder.of_prompt(live)
    cameras = [Camera(Where(heads=(1,)), patches=(patch,)) for _ in range(2)]
    cameras[0](live)
    for t in (*live.x, live.out, live.plan.level):
        t.zero_()
    cameras[1](kept)
    assert not kept.ctx.state and len(kept.out) == 1
    alone = Camera(Where(heads=(0,)), patches=(patch,))
    alone(recorder.of_prompt(kept, [1]))
    assert alone.views[0].numbers == cameras[1].views[0].numbers
    one, two = (camera.views[0] for camera in cameras)
    assert one.numbers == pytest.approx(two.numbers, rel=1e-5)
    for a, b in zip((*one.own[:5], *one.video[:5], *one.looks[0][1:3]),
                    (*two.own[:5], *two.video[:5], *two.looks[0][1:3]), strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_keeper_stays_in_its_memory():
    """Few calls, spread over layers and steps; the other branch of guidance is not the prompt."""
    live = seen(GRIDS[0], "pisa")
    size = recorder.head_bytes(live) * live.x.q.shape[1]
    for room in (1, 3, 7, 100):
        keeper = recorder.Keeper(tuple(range(2, 10)), tuple(range(4, 20)), room * size)
        for layer in range(2, 10):
            for step in range(4, 20):
                for branch in (1, 0):
                    keeper(live._replace(layer=layer, step=step, branch=branch))
        layers, steps = ({place[i] for place in keeper.calls} for i in (0, 1))
        assert 1 <= len(keeper.calls) <= room
        assert len(keeper.calls) == len(layers) * len(steps)
        assert len(steps) == min(room, recorder.STEPS)
        assert room < 6 or {2, 9} <= layers


def test_of_large_calls_some_heads_are_kept():
    """Never more bytes than may be; what does not fit with one head is refused in one line."""
    live = seen(GRIDS[0], "pisa")
    size, every = recorder.head_bytes(live), live.x.q.shape[1]
    keeper = recorder.Keeper((0, 1), (0, 1), size)
    for layer in (0, 1):
        keeper(live._replace(layer=layer, step=1))
    (kept,) = keeper.calls.values()
    assert keeper.every == every > len(keeper.heads) == 1 == kept.x.q.shape[1]
    assert torch.equal(kept.out[0, 0], live.out[-1, keeper.heads[0]])
    assert sum(t.numel() * t.element_size() for t in recorder.tensors(kept)) <= keeper.most
    with pytest.raises(ArgumentError, match="one head of this video takes"):
        recorder.Keeper((0,), (0,), size - 1)(live)


def test_frames_are_kept_no_larger_than_drawn():
    frame = np.random.default_rng(0).random((360, 640, 3), dtype=np.float32)
    assert recorder.thumb(frame, 45).shape == (180, 320, 3)
    assert np.array_equal(recorder.thumb(frame[:64, :64], 8), to_uint8(frame[:64, :64]))


def test_spread():
    assert recorder.spread((4,), 3) == (4,) and recorder.spread((1, 2, 3), 1) == (2,)
    assert recorder.spread((1, 2, 3), 3) == (1, 2, 3) == recorder.spread((1, 2, 3), 9)
    assert recorder.spread(tuple(range(10)), 3) == (0, 4, 9)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """One generation of the tiny pipeline, with guidance, looked into."""
    folder = save(tmp_path_factory.mktemp("model"))
    request = Request("a red circle", str(folder), method="draft", keep=0.4, guidance=2.0,
                      set=("patch=[4, 4]", "dense_layers=0"))  # fmt: skip
    with hushed(False):
        return recorder.record(loaded(request, Screen(quiet=True)), request)


def test_recording(recording):
    """The first step is dense by the schedule: it is not there."""
    assert recording.steps == [1, 2] and recording.layers == [0, 1] and recording.heads == [0, 1]
    assert recording.sides == (3, 8, 8) and recording.patch == (1, 4, 4)
    assert recording.frames.shape == (9, 64, 64, 3) and recording.frames.dtype == np.uint8
    assert recording.label.startswith("draft keep=0.4") and recording.rest == "left out"
    assert {len(call.x.q) for call in recording.calls.values()} == {1}
    view = recording.view(1, 1, 2, (2, 0, 7))
    assert (view.layer, view.head, view.step, view.looks[0].patch) == (1, 1, 2, (2, 0, 7))
    with pytest.raises(ArgumentError, match="layer 1 at step 0 was not kept"):
        recording.view(1, 1, 0, (2, 0, 7))
    with pytest.raises(ArgumentError, match="head 7 was not kept"):
        recording.view(1, 7, 2, (2, 0, 7))
    with pytest.raises(ArgumentError, match=r"patch \(9, 0, 0\)"):
        recording.view(1, 1, 2, (9, 0, 0))


def test_dense_is_refused():
    with pytest.raises(ArgumentError, match="choose a sparse method"):
        recorder.record(None, Request("a", method="dense"))


def test_shelf_keeps_the_newest():
    shelf = recorder.Shelf(2)
    first, second = shelf.put("a"), shelf.put("b")
    assert shelf.get(first) == "a"
    third = shelf.put("c")
    assert (shelf.get(first), shelf.get(third)) == ("a", "c")
    for key in (second, None, "guess"):
        with pytest.raises(ArgumentError, match="Look inside"):
            shelf.get(key)
    # a visitor's next one takes the place of the last one
    fourth = shelf.put("d", instead=third)
    assert (shelf.get(first), shelf.get(fourth)) == ("a", "d")
    shelf.drop(fourth)
    with pytest.raises(ArgumentError):
        shelf.get(fourth)


def test_places(recording):
    """Two pictures of every frame, each with its place and words for who cannot see it."""
    view = recording.view(0, 1, 2, (2, 5, 6))
    page = Reader(viewer.places(view, recording.frames))
    told = page.all("div")[0]
    assert (told["data-patch"], told["data-sides"]) == ("2,5,6", "3,8,8")
    pictures = page.all("img")
    assert [picture["data-frame"] for picture in pictures] == ["0", "1", "2"] * 2
    for picture in pictures:
        # known sizes: nothing jumps when it loads; reachable by keys
        assert picture["tabindex"] == "0" and int(picture["width"]) == int(picture["height"]) == 160
        assert ("chosen patch" in picture["alt"]) == (picture["data-frame"] == "2")
        assert picture["src"].startswith("data:image/")
    assert len({picture["alt"] for picture in pictures}) == 6


def test_maps_and_numbers(recording):
    view = recording.view(1, 0, 1, (1, 4, 4))
    for order in viewer.ORDERS.values():
        alts = [picture["alt"] for picture in Reader(viewer.maps(view, order)).all("img")]
        assert "layer 1, head 0, step 1" in alts[0] and "computed exactly" in alts[1]
    own, video = (viewer.maps(view, order) for order in ("own", "video"))
    assert own != video
    text = viewer.numbers(view, "<left out>")
    for value in view.numbers:
        assert f"<dd>{value:.1%}</dd>" in text
    assert "&lt;left out&gt;" in text


def test_all_heads(recording):
    text = viewer.heads_table(recording, 1, 0, 2)
    cells = Reader(text).all("button")
    assert len(cells) == 3 * 2 * 2
    here = [cell for cell in cells if "aria-current" in cell]
    assert {(cell["data-layer"], cell["data-head"]) for cell in here} == {("1", "0")}
    for cell, value in zip(here, recording.view(1, 0, 2, (0, 0, 0)).numbers, strict=True):
        assert cell["aria-label"] == f"layer 1, head 0: {value:.3f}"


def test_heads_are_measured_once(recording, monkeypatch):
    """Another patch or head costs no second measurement of all of them."""
    text = viewer.heads_table(recording, 1, 0, 1)
    monkeypatch.setattr(recorder, "Camera", None)
    assert viewer.heads_table(recording, 1, 0, 1) == text


def test_some_heads_of_many(recording):
    """They keep their numbers, and the page says that others are not there."""
    calls = {place: recorder.of_prompt(call, [1]) for place, call in recording.calls.items()}
    some = replace(recording, calls=calls, heads=[1], readings={})
    assert some.view(1, 1, 2, (2, 0, 7)).numbers == recording.view(1, 1, 2, (2, 0, 7)).numbers
    assert {cell["data-head"] for cell in Reader(viewer.heads_table(some, 1, 1, 2)).all("button")}
    pytest.importorskip("gradio", reason="no gradio: pip install -e '.[test]'")
    from dit_sparse.demos import look_tab

    assert "1 of 2 heads are kept" in look_tab.summary(some)
    assert "heads" not in look_tab.summary(recording)
