"""PSNR and SSIM against values worked out by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from dit_sparse.errors import ArgumentError
from dit_sparse.metrics import psnr, ssim


def video(frames=3, height=20, width=24, seed=0):
    return np.random.default_rng(seed).random((frames, height, width, 3), np.float32)


def test_psnr_of_a_known_error():
    black = np.zeros((2, 16, 16, 3), np.float32)
    assert psnr(black, black + 0.1) == pytest.approx(20, abs=1e-4)
    # the mean over frames of the values in dB, not the value of the mean error
    other = np.stack([black[0] + 0.1, black[0] + 0.01])
    assert psnr(black, other) == pytest.approx(30, abs=1e-3)


def test_equal_videos_have_no_noise():
    a = video()
    assert math.isinf(psnr(a, a)) and ssim(a, a) == pytest.approx(1)
    # an equal frame among others does not make the mean infinite
    b = a.copy()
    b[1:] = np.clip(b[1:] + 0.1, 0, 1)
    assert psnr(a, b) == pytest.approx(psnr(a[1:], b[1:]))


def test_ssim_is_that_of_two_constant_pictures():
    """Without structure only the luminance term is left."""
    a, b = np.full((1, 32, 32, 3), 0.5), np.full((1, 32, 32, 3), 0.6)
    c1 = 0.01**2
    assert ssim(a, b) == pytest.approx((2 * 0.5 * 0.6 + c1) / (0.5**2 + 0.6**2 + c1), abs=1e-4)


def test_chunks_do_not_change_the_values():
    a, b = video(35), video(35, seed=1)
    assert psnr(a, b) == pytest.approx(
        np.mean([psnr(a[i : i + 1], b[i : i + 1]) for i in range(35)])
    )
    assert ssim(a, b) == pytest.approx(ssim(torch.tensor(a), torch.tensor(b)))
    assert ssim(a, b) < ssim(a, a)


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((2, 16, 16, 3)), np.zeros((3, 16, 16, 3))),
        (np.zeros((16, 16, 3)), np.zeros((16, 16, 3))),
        (np.zeros((0, 16, 16, 3)), np.zeros((0, 16, 16, 3))),
    ],
)
def test_wrong_shapes_are_named(measure, a, b):
    with pytest.raises(ArgumentError, match="videos"):
        measure(a, b)


def test_too_small_for_the_window():
    with pytest.raises(ArgumentError, match="11 x 11"):
        ssim(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 3)))


def test_needs_no_diffusers():
    code = "import sys, dit_sparse.metrics; print('diffusers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr
