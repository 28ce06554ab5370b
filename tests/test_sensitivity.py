"""Harm: what the trials lost is what it predicts for them, and a PSNR is aimed at."""

import pytest
import torch

from dit_sparse.search.choose import Problem, near
from dit_sparse.search.sensitivity import harm, trials

P, L, H, C = 3, 4, 2, 5
STEPS = (4, 3, 5)


def measured(seed=0):
    """Errors [P, L, H, C], effects [P, L, C] and losses [2, P]: the second video's tenfold."""
    g = torch.Generator().manual_seed(seed)

    def some(*shape):
        return 0.5 + torch.rand(*shape, generator=g, dtype=torch.float64)

    # the later a candidate comes, the coarser it is
    errors, effects = some(P, L, H, C) * torch.arange(C), some(P, L, C) * torch.arange(C)
    lost = 0.01 * some(1, P)
    return errors, effects, torch.cat([lost, 10 * lost])


def problem():
    errors, effects, lost = measured()
    each = torch.arange(C, 0, -1).double()
    return Problem(errors, harm(errors, effects, STEPS, lost), STEPS, 0.1 * each, each)


def test_prediction_of_the_trials_is_what_they_lost():
    """Their mean over the videos."""
    _, effects, lost = measured()
    of = problem()
    for number, choice in enumerate(trials(effects)):
        heads = choice[..., None].expand(-1, -1, H)
        assert of.harmed(heads) == pytest.approx(5.5 * float(lost[0, number]))
    assert of.harmed(of.dense()) == 0


def test_harm_follows_effects_over_layers_and_errors_over_heads():
    errors, effects, lost = measured()
    found = harm(errors, effects, STEPS, lost)
    layers = found.sum(2)[..., 1:] / effects[..., 1:]
    assert torch.allclose(layers, layers[:, :1, :1].expand_as(layers))
    heads = found[..., 1:] / errors[..., 1:]
    assert torch.allclose(heads, heads[:, :, :1].expand_as(heads))


def test_each_trial_is_sparse_in_its_part_alone():
    """With the candidate whose effects are in the middle, which is not the middle letter."""
    _, effects, _ = measured()
    effects[..., 1] *= 100
    found = trials(effects)
    assert len(found) == P
    for number, choice in enumerate(found):
        assert [p for p in range(P) if choice[p].any()] == [number]
        assert (choice[number] == 3).all() or (choice[number] == 4).all()


def test_what_cannot_be_measured_is_held():
    """Nothing lost, no error and no effect give no infinite values."""
    errors, effects, lost = measured()
    errors[0, 0], effects[1], lost[:, 2] = 0, 0, 0
    found = harm(errors, effects, STEPS, lost)
    assert found.isfinite().all() and (found >= 0).all()


def test_prediction_is_met_and_costs_time():
    of, seconds = problem(), []
    for psnr in (5.0, 15.0, 30.0, 90.0):
        choice = near(of, psnr)
        assert of.psnr(choice) >= psnr
        seconds.append(of.seconds(choice))
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]
