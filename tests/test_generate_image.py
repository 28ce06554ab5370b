"""`dit-sparse generate --image`: a picture becomes a video, or another picture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, WanImageToVideoPipeline
from PIL import Image
from typer.testing import CliRunner

import dit_sparse
from dit_sparse.cli import app
from dit_sparse.commands.model import Geometry, Trained
from dit_sparse.commands.picture import cut, place, read, taking
from dit_sparse.commands.request import Request
from tests.test_families import flux
from tests.tiny_wan import TRAINED, save, tiny_wan

PROMPT = "a red circle moves right"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Models and files that the rows below name in braces."""
    root = tmp_path_factory.mktemp("places")
    wan = tiny_wan().components
    # latents, the picture's latents, and a mask of four frames
    config = {**wan["transformer"].config, "in_channels": 4 + 4 + 4}
    wan["transformer"] = type(wan["transformer"]).from_config(config)
    wan = {name: part for name, part in wan.items() if name != "transformer_2"}
    WanImageToVideoPipeline(**wan).save_pretrained(root / "i2v")
    (root / "i2v/trained.json").write_text(json.dumps(TRAINED))
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40, 0] = pixels[:, 40:, 2] = 255
    for name in ("wide.png", "wide.jpg"):
        Image.fromarray(pixels).save(root / name)
    (root / "text.png").write_text("not a picture")
    (root / "half.png").write_bytes((root / "wide.png").read_bytes()[:90])
    (root / "folder").mkdir()
    return {**{p.name.replace(".", "_"): p for p in root.iterdir()}, "t2v": save(root / "t2v")}


def generate(places, *words):
    words = [str(word).format(**places) for word in words]
    return CliRunner().invoke(app, ["generate", PROMPT, *words])


@pytest.mark.parametrize("name", ["wide_png", "wide_jpg"])
def test_image_to_video(places, tmp_path, monkeypatch, name):
    """The result takes the offered size that is nearest to the picture's shape."""
    monkeypatch.chdir(tmp_path)
    options = ["--steps", 1, "--frames", 5, "--method", "draft", "--keep", 0.3, "--json"]
    result = generate(places, "--model", "{i2v}", "--image", f"{{{name}}}", *options)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["frames"], told["height"], told["width"]) == (5, 64, 96)
    assert told["image"] == str(places[name]) and Path(told["out"]).is_file()


WRONG = [
    (["--model", "{i2v}"], ["WanImageToVideoPipeline", "--image FILE"]),
    (["--model", "{t2v}", "--image", "{wide_png}"], ["WanPipeline", "WanImageToVideoPipeline"]),
    (["--image", "{t2v}/no.png"], ["no.png", "no such file"]),
    (["--image", "{folder}"], ["is a folder", "PNG"]),
    (["--image", "{text_png}"], ["text.png", "no picture"]),
    (["--image", "{half_png}"], ["half.png", "no picture"]),
]


@pytest.mark.parametrize(("words", "expected"), WRONG, ids=str)
def test_wrong(places, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    if "--model" not in words:
        monkeypatch.setattr("dit_sparse.commands.job.load", None)
    result = generate(places, *words)
    last = result.stderr.strip().splitlines()[-1]
    assert result.exit_code == 2 and last.startswith("error: "), result.output
    assert all(word in last for word in expected), last
    assert not result.stdout and not list(tmp_path.iterdir())


def test_image_to_image():
    """The models of a text-to-image pipeline draw on a picture; a sparse method stays possible."""
    pipe = taking(flux())
    assert type(pipe).__name__ == "FluxImg2ImgPipeline" and taking(pipe) is pipe
    kontext = FluxKontextPipeline(**flux().components)
    assert taking(kontext) is kontext
    texts = {"prompt_embeds": torch.ones(1, 7, 16), "pooled_prompt_embeds": torch.ones(1, 8)}

    def draw(picture):
        noise = torch.Generator().manual_seed(0)
        size = {"height": 16, "width": 32, "num_inference_steps": 4, "strength": 0.5}
        return pipe(**texts, **size, image=picture, generator=noise, output_type="np").images

    pipe.set_progress_bar_config(disable=True)
    dit_sparse.enable(pipe, "draft", keep=0.3, patch=(3, 2), dense_steps=0, dense_layers=0)
    dark, light = (Image.new("RGB", (32, 16), (n, n, n)) for n in (10, 240))
    assert not np.array_equal(draw(dark), draw(light))
    report = dit_sparse.report(pipe)
    assert {cell.step for cell in report.cells} == {0, 1} and report.sparse_calls == report.calls


SIZES = [
    ({}, {}, (32, 80)),
    ({"height": 32}, {"height": 32, "width": 80}, (32, 64)),
    ({"height": 32, "width": 32}, {"height": 32, "width": 32}, (32, 32)),
    ({}, {"height": 64, "width": 64}, (48, 96)),
    ({}, {"height": 1024, "width": 1024}, (720, 1456)),
]


class Taker:
    """A pipeline that takes a picture and a size."""

    def __call__(self, image, height, width): ...


@pytest.mark.parametrize(("asked", "defaults", "size"), SIZES)
def test_size_and_cut(places, asked, defaults, size):
    """A picture of 40 x 80 keeps its shape, at the pixels that the model makes."""
    geometry = Geometry(False, 16, 1, (1, 16, 16))
    request = Request(PROMPT, image=places["wide_png"], **asked)
    found = place(dict(defaults), Taker(), request, Trained(), geometry)
    assert (found["height"], found["width"]) == size
    assert found["image"].size == size[::-1]
    if not asked:
        # the middle stays the middle, and nothing is stretched
        pixels = np.asarray(cut(read(places["wide_png"]), *size))
        assert pixels[size[0] // 2, 2, 0] > 200 and pixels[size[0] // 2, -3, 2] > 200
