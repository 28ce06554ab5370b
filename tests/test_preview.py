"""Frames of a running generation, and the video of a difference."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dit_sparse.commands.preview import Preview
from dit_sparse.commands.sampling import sample
from dit_sparse.errors import ArgumentError
from dit_sparse.inspection.difference import FULL, difference
from tests.tiny_wan import tiny_wan

ARGUMENTS = {
    "prompt": "a red circle", "height": 64, "width": 96, "num_frames": 9, "guidance_scale": 1.0,
    "num_inference_steps": 4, "max_sequence_length": 12, "output_type": "np",
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return tiny_wan()


def test_a_straight_way_is_followed_to_its_end(pipe):
    """Where latents go straight from noise to video, the first steps know the video."""
    noise, video = torch.randn(2, 1, 4, 3, 8, 8).unbind()
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.3, 0.0])
    host = SimpleNamespace(scheduler=SimpleNamespace(sigmas=sigmas))
    preview = Preview(pipe)
    for step, level in enumerate(sigmas[1:]):
        preview.keep(host, step, None, {"latents": level * noise + (1 - level) * video})
        if step:
            torch.testing.assert_close(preview.clean, video, atol=1e-5, rtol=1e-5)
    # a second generation does not go on from the first
    preview.keep(host, 0, None, {"latents": noise})
    assert preview.clean is noise


def test_unknown_noise_shows_the_latents(pipe):
    latents = torch.randn(1, 4, 3, 8, 8)
    host = SimpleNamespace(scheduler=SimpleNamespace())
    preview = Preview(pipe)
    for step in range(2):
        preview.keep(host, step, None, {"latents": latents})
        assert preview.clean is latents


def test_it_changes_nothing(pipe):
    """A generation with previews is bit for bit the one without; each step has its picture."""
    from dit_sparse.commands.screen import Screen

    seen = []

    class Watching(Screen):
        def show(self, step, steps, note):
            seen.append(preview.picture())

    preview = Preview(pipe)
    plain = sample(pipe, ARGUMENTS, 1)
    shown = sample(pipe, {**ARGUMENTS, **preview.arguments}, 1, Watching())
    assert np.array_equal(plain.frames, shown.frames)
    assert [(picture.shape, picture.dtype) for picture in seen] == [((64, 288, 3), np.uint8)] * 4
    # at the end no noise is left: the picture begins with the first frame, which is decoded alone
    first = (plain.frames[0] * 255).round()
    assert np.abs(seen[-1][:, :96].astype(float) - first).max() <= 1


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_large_latents_are_made_small(pipe, frames):
    preview = Preview(pipe)
    preview.clean = torch.randn(2, 4, frames, 20, 80)
    assert preview.picture().shape == (8 * 10, 8 * 40 * min(frames, 3), 3)


@pytest.mark.parametrize("latents", [None, torch.zeros(1, 64, 16), torch.zeros(1, 7, 2, 8, 8)])
def test_no_picture_is_no_error(pipe, latents):
    """Packed latents, and those of another VAE, have no preview."""
    preview = Preview(pipe)
    preview.clean = latents
    assert preview.picture() is None


def test_equal_videos_do_not_differ():
    video = np.random.default_rng(0).random((2, 8, 8, 3))
    assert len({tuple(colour) for frame in difference(video, video) for colour in frame[0]}) == 1


def test_a_difference_grows_brighter_up_to_white():
    """More difference is never darker, and from FULL on it is white."""
    steps = np.linspace(0, 1, 101)
    dense = np.zeros((1, 1, 101, 3))
    (frame,) = difference(dense, np.repeat(steps[None, None, :, None], 3, -1))
    light = frame[0].astype(int).sum(-1)
    assert (np.diff(light) >= 0).all() and light[0] < 50
    assert (frame[0, steps > FULL + 0.01] == 255).all() and light[int(100 * FULL) - 3] < 3 * 255
    # signs do not matter
    back = next(difference(np.repeat(steps[None, None, :, None], 3, -1), dense))
    assert np.array_equal(frame, back)


def test_videos_must_be_equally_long():
    with pytest.raises(ValueError, match="longer"):
        list(difference(np.zeros((2, 8, 8, 3)), np.zeros((3, 8, 8, 3))))
    with pytest.raises(ArgumentError, match=r"\[H, W, 3\]"):
        list(difference(np.zeros((1, 8)), np.zeros((1, 8))))
