"""Weights and gains: planted ones are found, the prediction is the loss, a PSNR is aimed at."""

import pytest
import torch

from dit_sparse.search.choose import Problem, near
from dit_sparse.search.sensitivity import Trials, weighed

P, L, H, C = 3, 4, 2, 5


def planted(seed=0):
    """A problem whose weights are a product, with errors that have the same shape everywhere."""
    g = torch.Generator().manual_seed(seed)

    def some(*shape):
        return 0.5 + torch.rand(*shape, generator=g, dtype=torch.float64)

    errors = some(P, 1, 1, 1) * some(1, L, 1, 1) * some(1, 1, H, 1) * some(C)
    errors[..., 0] = 0
    weights = some(P, 1) * some(1, L)
    return Problem(
        errors, (4, 3, 5), torch.full((C,), 0.1).double(), torch.arange(C, 0, -1).double(),
        weights / weights.mean(), 0.01 * some(C),
    )  # fmt: skip


def test_planted_weights_are_found():
    truth = planted()
    trials = Trials.of(truth)
    # two videos of which the second loses ten times as much: the geometric mean between them
    lost = torch.tensor([truth.harmed(choice) for choice in trials.every], dtype=torch.float64)
    found = weighed(truth, trials, torch.stack([lost, 10 * lost]))
    assert torch.allclose(found.weights, truth.weights)
    assert torch.allclose(found.gains[1:], 10**0.5 * truth.gains[1:])
    for choice in trials.every:
        assert found.harmed(choice) == pytest.approx(10**0.5 * truth.harmed(choice))


def test_each_trial_is_sparse_in_its_place_alone():
    trials = Trials.of(planted())
    assert len(trials.every) == P + len(trials.groups) + C - 1
    for number, choice in enumerate(trials.parts):
        assert [p for p in range(P) if choice[p].any()] == [number]
    for group, choice in zip(trials.groups, trials.layers, strict=True):
        assert not choice[0].any()
        assert [n for n in range(L) if choice[1:, n].all()] == group.tolist()
    for number, choice in enumerate(trials.candidates, 1):
        assert not choice[0].any() and (choice[1:] == number).all()


def test_what_is_lost_without_measure_is_held():
    """A trial that lost all there is says no more than that a place is very sensitive."""
    truth = planted()
    trials = Trials.of(truth)
    lost = torch.tensor([truth.harmed(choice) for choice in trials.every], dtype=torch.float64)
    lost[0], lost[P], lost[-1] = 1e6, 0.0, 1e6
    found = weighed(truth, trials, lost[None])
    assert found.weights.isfinite().all() and (found.weights > 0).all()
    assert found.gains.max() / found.gains.median() <= 20 * (1 + 1e-9)


def test_prediction_is_met_and_costs_time():
    problem, seconds = planted(), []
    for psnr in (15.0, 20.0, 30.0, 90.0):
        choice = near(problem, psnr)
        assert problem.psnr(choice) >= psnr
        seconds.append(problem.seconds(choice))
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]


def test_one_part_and_one_layer():
    """Nothing to compare: weights are one, and candidates are tried everywhere."""
    errors = torch.tensor([0.0, 0.2, 0.4], dtype=torch.float64).expand(1, 1, H, 3)
    ones = torch.ones(3, dtype=torch.float64)
    problem = Problem(errors, (4,), ones, ones, torch.ones(1, 1), ones)
    trials = Trials.of(problem)
    assert [len(t) for t in (trials.parts, trials.layers, trials.candidates)] == [0, 0, 2]
    found = weighed(problem, trials, torch.tensor([[0.01, 0.02]], dtype=torch.float64))
    assert found.weights.tolist() == [[1.0]]
    assert found.harmed(trials.candidates[1]) == pytest.approx(0.02)
