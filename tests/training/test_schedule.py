"""Schedules: what is known beforehand, and what a validation changes."""

import math

import numpy as np
import pytest
import torch

from training.schedule import Best, Plateau, rate_curve, warmup_constant, warmup_cosine


def test_the_schedule_rises_straight_and_falls_like_a_cosine():
    rates = warmup_cosine(2.0, 110, 10)
    assert len(rates) == 110
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10 * 2)
    np.testing.assert_allclose(rates[10:], [1 + np.cos(np.pi * t / 100) for t in range(100)])
    assert warmup_cosine(1.0, 3, 10).tolist() == [1 / 3, 2 / 3, 1.0]
    assert warmup_cosine(1.0, 4, 0)[0] == 1.0


def test_a_constant_rate_is_constant_after_warm_up():
    np.testing.assert_allclose(warmup_constant(3.0, 6, 3), [1, 2, 3, 3, 3, 3])
    assert warmup_constant(3.0, 2, 0).tolist() == [3, 3]
    assert rate_curve("plateau", 3.0, 6, 3).tolist() == rate_curve("constant", 3.0, 6, 3).tolist()


@pytest.mark.parametrize("patience", [0, 2])
def test_a_plateau_is_found_as_torch_finds_it(patience):
    losses = [5, 4, 4, 4, 3.9, 3.9, 3.89999, 3.89998, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, math.nan, 2.9, 2.9]
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=patience, eps=0)
    ours = Plateau(patience, 0.5)
    for loss in losses:
        theirs.step(loss)
        ours.update(loss)
        assert ours.factor == pytest.approx(optimiser.param_groups[0]["lr"])
        later = Plateau(patience, 0.5)  # as if resumed
        later.load_state_dict(ours.state_dict())
        ours = later
    assert ours.factor < 1


def test_without_patience_the_rate_stays():
    plateau = Plateau(None)
    for _ in range(99):
        plateau.update(1.0)
    assert plateau.factor == 1


def test_the_best_validation_is_remembered_until_patience_ends():
    best = Best(20)
    assert [best.update(value, step) for step, value in ((10, 0.3), (20, 0.2), (30, 0.31))] == [True, False, True]
    assert best.step == 30 and not best.over(49) and best.over(50)
    assert not Best(None).over(10**9)
    again = Best(None)
    again.load_state_dict({"score": 2.0, "step": 5})
    assert not again.update(2.0, 6) and again.update(2.1, 7)
