"""Flicker, warped error, LPIPS and intervals: values worked out by hand, properties, oracles."""

import numpy as np
import pytest
import torch
from torch import nn

from dit_sparse.errors import ArgumentError
from dit_sparse.metrics import flicker, warped_error
from dit_sparse.quality import lpips
from dit_sparse.quality.intervals import difference, mean, quantile, wilson


def texture(frames, shift, size=48, seed=0):
    """Return a smooth picture that moves `shift` pixels right per frame, [F, size, size, 3]."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(size * 2), np.arange(size))
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(0.15, 0.6, (6, 3))]
    whole = 0.5 + np.stack([sum(waves[i : i + 4]) for i in range(3)], -1) / 10
    starts = [size - shift * f for f in range(frames)]
    return np.stack([whole[:, s : s + size] for s in starts]).astype(np.float32)


def test_flicker_is_the_mean_change():
    video = np.zeros((4, 8, 8, 3), np.float32)
    assert flicker(video) == 0
    video[1::2] = 0.25  # every frame differs from the one before
    assert flicker(video) == pytest.approx(0.25)
    video[:, :, :4] = 0
    assert flicker(torch.tensor(video)) == pytest.approx(0.125)


def test_motion_is_no_warped_error_and_noise_is():
    moving = texture(6, 2)
    unwarped = ((moving[1:] - moving[:-1]) ** 2).sum(-1).mean()
    assert flicker(moving) > 0.02 and warped_error(moving) < 0.1 * unwarped
    noise = np.random.default_rng(1).normal(0, 0.03, moving.shape).astype(np.float32)
    # two frames of independent noise on three channels; a warp only averages it
    assert warped_error(moving + noise) > 0.2 * 6 * 0.03**2 + warped_error(moving)
    assert warped_error(np.ones((3, 32, 32, 3))) == 0


@pytest.mark.parametrize("measure", [flicker, warped_error])
@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (32, 32, 3), (3, 32, 32, 1)])
def test_wrong_videos_are_named(measure, shape):
    with pytest.raises(ArgumentError, match=r"a video of .* at least 2 frames"):
        measure(np.zeros(shape))
    with pytest.raises(ArgumentError, match="16 x 16"):
        warped_error(np.zeros((2, 8, 64, 3)))


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    """AlexNet's features with random weights, where torchvision keeps the trained ones."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "AlexNet" in lpips.missing()
    channels, pool = (3, 64, 192, 384, 256, 256), nn.MaxPool2d(3, 2)
    sizes, layers = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)), []
    for i, (size, stride, padding) in enumerate(sizes):
        layers += [nn.Conv2d(channels[i], channels[i + 1], size, stride, padding), nn.ReLU()]
        layers += [pool] if i in (0, 1) else []
    net = nn.Sequential(*layers)
    (tmp_path / "checkpoints").mkdir()
    weights = {f"features.{name}": value for name, value in net.state_dict().items()}
    torch.save(weights, tmp_path / "checkpoints" / lpips.BACKBONE)
    yield net
    lpips._weights.cache_clear()


def test_lpips(backbone):
    """The formula with the layers as modules, in float64."""
    a, b = torch.rand(2, 3, 40, 33, 3).unbind(0)
    heads = torch.load(lpips._heads(), map_location="cpu", weights_only=True)
    net, total = backbone.double(), 0.0
    for x, y in zip(a.double(), b.double(), strict=True):
        pair = torch.stack([x, y]).permute(0, 3, 1, 2)
        shift, scale = (torch.tensor(v).double()[:, None, None] for v in (lpips.SHIFT, lpips.SCALE))
        pair, level = (2 * pair - 1 - shift) / scale, 0
        for layer in net:
            pair = layer(pair)
            if isinstance(layer, nn.ReLU):
                unit = pair / (pair.square().sum(1, keepdim=True) + 1e-8).sqrt()
                weight = heads[f"lin{level}.model.1.weight"].double()
                off = ((unit[0] - unit[1]).square() * weight[0]).sum(0)
                total, level = total + off.mean().item(), level + 1
    assert lpips.lpips(a, b.numpy()) == pytest.approx(total / 3, rel=1e-4)
    assert lpips.lpips(a, b) == pytest.approx(lpips.lpips(b, a)) and lpips.lpips(a, a) == 0
    with pytest.raises(ArgumentError, match="31 x 31"):
        lpips.lpips(a[:, :30], b[:, :30])


def test_lpips_without_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ArgumentError, match="alexnet"):
        lpips.lpips(np.zeros((1, 32, 32, 3)), np.zeros((1, 32, 32, 3)))


def test_quantiles():
    """Two-sided 95 % values as printed in tables of Student's t."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}
    for dof, value in table.items():
        assert quantile(dof) == pytest.approx(value, abs=6e-4)


def test_seeds_of_a_prompt_are_one_value():
    values = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 4.0, ("c", 5): 6.0}
    found = mean(values)
    assert (found.value, found.n, found.over) == (4.0, 3, "prompts")
    assert found.half == pytest.approx(4.303 * 2 / 3**0.5, rel=1e-3)
    # one prompt: over its seeds; one value: no interval, and never sure
    one = mean({("a", 0): 1.0, ("a", 1): 3.0})
    assert (one.value, one.n, one.over) == (2.0, 2, "seeds")
    assert mean({("a", 0): 1.0}).half is None and not mean({("a", 0): 1.0}).sure
    assert mean({}) is None


def test_pairs_cancel_what_they_share():
    """Prompts differ by far more than two cases: only the paired difference sees it."""
    rng = np.random.default_rng(0)
    videos = [(f"prompt {i}", i) for i in range(20)]
    hard = dict(zip(videos, rng.normal(0, 10, 20), strict=True))
    a = {v: hard[v] + 1 + rng.normal(0, 0.1) for v in videos}
    found = difference(a, hard)
    assert found.sure and found.value == pytest.approx(1, abs=0.2) and found.half < 0.1
    assert not mean(a).sure
    # only what both have counts
    assert difference(a, {videos[0]: 0.0}).n == 1 and difference(a, {}) is None


def test_intervals_cover():
    """95 of 100 intervals hold the true mean, for few values as well."""
    rng, trials, n = np.random.default_rng(3), 3000, 4
    draws = rng.normal(0, 1, (trials, n))
    hits = sum(not mean({(str(i), 0): x for i, x in enumerate(row)}).sure for row in draws)
    # four standard deviations of a binomial share
    assert abs(hits / trials - 0.95) < 4 * (0.95 * 0.05 / trials) ** 0.5


@pytest.mark.parametrize("n", [1, 8, 40])
def test_score_intervals(n):
    """Their ends are the shares that lie 1.96 of their own standard deviations away."""
    for right in range(n + 1):
        low, high = wilson(right / n, n)
        assert 0 <= low <= right / n <= high <= 1 and high - low > 0.01
        for end in {low, high} - {0.0, 1.0}:
            away = abs(end - right / n) / (end * (1 - end) / n) ** 0.5
            assert away == pytest.approx(1.959964, rel=1e-6)
