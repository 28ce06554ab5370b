"""Maps and looks against exact attention, pictures, the page, and `dit-sparse inspect`."""

import base64
import json
import re

import numpy as np
import pytest
import torch

import dit_sparse
from dit_sparse.commands import inspecting
from dit_sparse.core import QKV, Grid
from dit_sparse.errors import ArgumentError
from dit_sparse.inspection import capture, draw, page
from dit_sparse.inspection.capture import Camera, Map, Where
from dit_sparse.integrations.session import Call
from dit_sparse.quality.probe import read
from dit_sparse.quality.watch import watching
from tests.demo_material import Reader
from tests.probe import DRAFT, quiet
from tests.test_cli import check
from tests.test_cli import run as command
from tests.test_eval_probe import GRIDS, METHODS, call, exact, token_level
from tests.tiny_wan import save, tiny_wan

ELEMENT, HEAD = 1, 1


@pytest.fixture(params=[(grid, name) for grid in GRIDS for name in METHODS], ids=str)
def case(request):
    """One head of one call: its tensors, plan and context, and its exact weights and levels."""
    grid, name = request.param
    x, plan, _, ctx = call(grid, name, METHODS[name])
    one = QKV(*(t[ELEMENT, HEAD][None, None] for t in x))
    p, level = (t[ELEMENT, HEAD] for t in (exact(x), token_level(plan, x.q.shape[1])))
    return one, capture.of_head(plan, ELEMENT, HEAD), ctx, p.numpy(), level.numpy()


def test_video_map_of_single_tokens_is_attention_itself(case):
    x, plan, ctx, p, level = case
    found = capture.video_map(x, plan, ctx, cells=1000)
    np.testing.assert_allclose(found.mass, p * len(p), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(found.exact, level == 1, atol=1e-6)
    np.testing.assert_allclose(found.pooled, level > 1, atol=1e-6)


def test_maps_hold_all_attention(case):
    """Rows of a map average to uniform, whatever its cells; shares are shares of pairs."""
    x, plan, ctx, _, _ = case
    for make in (capture.own_map, capture.video_map):
        for cells in (5, 12, 96):
            found = make(x, plan, ctx, cells)
            width = np.diff(found.columns)
            rows = np.diff(found.rows) > 0
            total = (found.mass * width).sum(1) / width.sum()
            np.testing.assert_allclose(total[rows], 1, rtol=1e-4)
            assert found.mass.shape == (len(found.rows) - 1, len(width))
            assert len(width) <= max(cells, ctx.grid.frames + 1)
            assert (found.exact >= 0).all() and (found.exact + found.pooled <= 1 + 1e-6).all()


def test_own_map_shows_blocks_as_they_are(case):
    x, plan, ctx, _, _ = case
    found = capture.own_map(x, plan, ctx, cells=1000)
    rows, columns = np.diff(found.rows) > 0, np.diff(found.columns) > 0
    level = plan.level[0, 0].numpy()[rows][:, columns]
    np.testing.assert_allclose(found.exact[rows][:, columns], level == 1, atol=1e-6)


def test_look(case):
    x, plan, ctx, p, level = case
    grid = ctx.grid
    first = grid.text if grid.text_first else 0
    patch = (1, 2, 3)
    token = first + (patch[0] * grid.height + patch[1]) * grid.width + patch[2]
    found, video = capture.look(x, plan, ctx, patch), slice(first, first + grid.video)
    want = p[token, video].reshape(grid.sides) * len(p)
    np.testing.assert_allclose(found.mass, want, rtol=2e-4, atol=1e-5)
    assert (found.level == level[token, video].reshape(grid.sides)).all()
    assert found.text == pytest.approx(1 - p[token, video].sum(), abs=1e-5)
    with pytest.raises(ArgumentError, match=r"patch .* is not in the token grid"):
        capture.look(x, plan, ctx, (0, grid.height, 0))


def test_frames_are_marked():
    edges, marks = capture._frames(Grid(3, 4, 6, text=5, text_first=True), 77, 20)
    assert marks == (5, 29, 53) and set(marks) < set(edges)
    assert edges[0] == 0 and edges[-1] == 77 and len(edges) <= 21
    assert capture._frames(None, 10, 4) == ([0, 2, 5, 7, 10], ())


@pytest.fixture(scope="module")
def shot():
    """A camera after one generation of a transformer: two layers, two heads, three steps."""
    torch.manual_seed(0)
    model = quiet(tiny_wan()).transformer
    dit_sparse.enable(model, "draft", **DRAFT)
    camera = Camera(Where(heads=(1,), steps=(0, 2)))
    with watching(model, camera), torch.no_grad():
        for at in (900.0, 600.0, 300.0):
            x, text = torch.randn(2, 4, 3, 6, 8), torch.zeros(2, 4, 16)
            model(x, torch.tensor([at, at]), text, return_dict=False)
    return camera


def test_camera_sees_what_it_was_told(shot):
    seen = [(view.layer, view.head, view.step) for view in shot.views]
    assert sorted(seen) == [(layer, 1, step) for layer in (0, 1) for step in (0, 2)]
    assert set(shot.readings) == {("transformer", n, s) for n in (0, 1) for s in (0, 2)}
    for view in shot.views:
        reading = shot.readings[view.part, view.layer, view.step]
        assert [len(values) for values in reading] == [2, 2, 2]
        assert view.numbers == tuple(float(values[1]) for values in reading)
        assert [look.patch for look in view.looks] == [(1, 3, 4), (1, 1, 1)]
        assert 0 < view.numbers.density < 1 and 0 < view.numbers.recall < 1


def test_camera_takes_the_first_of_several_calls():
    """Samples of a batch in groups, a layer called twice: one view of each head, one name each."""
    x, plan, out, ctx = call(GRIDS[0], "draft", METHODS["draft"])
    camera, error = Camera(), read(x, plan, out, ctx).error[-1].tolist()
    for result in (out, 5 * out):
        camera(Call("transformer", 3, 5, 0, x, plan, result, ctx))
    assert [view.name for view in camera.views] == [f"layer03-head0{h}-step05" for h in (0, 1)]
    assert [view.numbers.error for view in camera.views] == pytest.approx(error)


def test_camera_refuses(shot):
    model = quiet(tiny_wan()).transformer
    dit_sparse.enable(model, "draft", **DRAFT)
    x, text = torch.randn(1, 4, 3, 6, 8), torch.zeros(1, 4, 16)
    # one time at every step: the same twice would be the other branch of guidance
    for at, camera, words in (
        (900.0, Camera(Where(heads=(2,))), "head 2 is not there: they are 0 to 1"),
        (600.0, Camera(most=1), "more than 1 views"),
        (300.0, Camera(patches=((3, 0, 0),)), r"patch \(3, 0, 0\)"),
    ):
        with watching(model, camera), torch.no_grad(), pytest.raises(ArgumentError, match=words):
            model(x, torch.tensor([at]), text, return_dict=False)


def colours(picture):
    return {colour for _, colour in picture.getcolors(1 << 20)}


def test_colours():
    """Exact, pooled and the remainder have their colours, dark is much attention."""
    edges = np.arange(3)
    one, none = np.ones((2, 2)), np.zeros((2, 2))
    kinds = (one, none, draw.EXACT), (none, one, draw.POOLED), (none, none, draw.REST)
    for exact_, pooled, colour in kinds:
        picture = draw.choice(Map(one, exact_, pooled, edges, edges))
        assert colours(picture) == {colour, draw.FAINT}
    shades = [np.array(draw.attention(Map(one * m, one, none, edges, edges)))[9, 9].sum()
              for m in (0, 0.01, 0.5, 1, 7, 100, 1e9)]  # fmt: skip
    assert shades[0] == shades[1] and shades[-1] == shades[-2]
    assert sorted(shades[1:-1], reverse=True) == shades[1:-1] and len(set(shades[1:-1])) == 5


def test_page(shot, tmp_path):
    """One file with all pictures, no address outside itself, and no markup from a prompt."""
    bad = "<b>$tables</b> </script> & $$"
    files = page.write(tmp_path, shot, bad, bad, np.random.default_rng(0).random((9, 48, 64, 3)))
    assert [p.name for p in files] == ["index.html", *(f"{v.name}.png" for v in shot.views)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in files)
    text = files[0].read_text()
    reader = Reader(text)
    assert len(reader.all("option")) == len(shot.views) and not reader.all("b")
    assert not {"src", "href", "srcset"} & {name for _, attrs in reader.found for name in attrs}
    assert "http" not in text and text.count("</script>") == 1
    told = json.loads(re.search(r"const pictures = (\{.*?\}),", text)[1])
    for view, file in zip(shot.views, files[1:], strict=True):
        assert base64.b64decode(told[view.name]) == file.read_bytes()
        assert f'data-view="{view.name}"' in text
    # three numbers of two steps, for two layers and heads
    assert text.count("<td") == 3 * 2 * 2 * 2 and text.count("<table>") == 6


def test_command(tmp_path_factory, tmp_path):
    model = save(tmp_path_factory.mktemp("model"))
    args = ("--model", model, "--method", "draft", "--set", "patch=[4, 4]", "--keep", ".5",
            "--steps", 3, "--layer", "1", "--head", "all", "--patch", "0,1,2", "--out",
            tmp_path / "i")  # fmt: skip
    shown = command("inspect", "a red circle", *args, "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert told["page"] == str(tmp_path / "i" / "index.html") and len(told["pictures"]) == 2
    # the first step is dense: the middle one of the two that are not
    assert [(h["layer"], h["step"]) for h in told["heads"]] == [(1, 2)]
    assert len(told["heads"][0]["error"]) == 2
    dense = command("inspect", "a", *args, "--step", "0")
    check(dense, 2, ["--step 0", "dense", "--everywhere"])
    check(command("inspect", "a", *args, "--everywhere", "--step", "3"), 2, ["--step 3", "0 to 2"])
    wrong = command("inspect", "a", *args[:-4], "--patch", "9,0,0", "--out", tmp_path / "j")
    check(wrong, 2, ["patch (9, 0, 0)", "3 x 8 x 8"])
    assert not (tmp_path / "j").exists()


REFUSED = [
    (["--method", "dense"], ["--method dense"]),
    (["--method", "piza"], ["piza", "pisa"]),
    (["--method", "pisa", "--profile", "x"], ["--method", "--profile"]),
    (["--keep", "2"], ["--keep 2"]),
    (["--layer", "first"], ["--layer first", "0,3"]),
    (["--head", "-1"], ["--head -1"]),
    (["--patch", "1,2"], ["--patch 1,2", "FRAME,ROW,COLUMN"]),
    (["--model", "none"], ["--model none"]),
    (["--out", "/dev/null"], ["--out /dev/null"]),
]


@pytest.mark.parametrize(("args", "words"), REFUSED, ids=str)
def test_refused(args, words, monkeypatch):
    monkeypatch.setattr(inspecting, "loaded", None)
    check(command("inspect", *args), 2, words)
