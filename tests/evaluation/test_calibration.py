"""Calibration against naive loops and scikit-learn; a temperature that is known is found."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from evaluation.calibration import calibrate, calibration, fit_temperature, probabilities


def task(temperature: float, multi: bool, count: int = 20000) -> tuple[np.ndarray, np.ndarray]:
    """Truth drawn from the probabilities of logits, and those logits times a temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, 4))
    p = probabilities(logits, multi)
    if multi:
        return (rng.random(p.shape) < p).astype(np.float32), logits * temperature
    return (p.cumsum(1) < rng.random((count, 1))).sum(1), logits * temperature


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_found_and_calibrates(temperature: float, multi: bool) -> None:
    truth, logits = task(temperature, multi)
    half = len(truth) // 2
    found = calibrate((truth[:half], logits[:half]), (truth[half:], logits[half:]))
    assert found["temperature"] == pytest.approx(temperature, rel=0.05)
    assert found["scaled"]["ece"] < 0.02
    if temperature != 1:
        assert found["as_is"]["ece"] > 0.04 and found["scaled"]["nll"] < found["as_is"]["nll"]


def test_single_label_measures_are_those_of_loops_and_scikit_learn() -> None:
    truth, logits = task(2.0, False, 300)
    p = probabilities(logits, False)
    found = calibration(truth, logits)
    assert found["nll"] == pytest.approx(log_loss(truth, p))
    apart = [row - np.eye(4)[k] for row, k in zip(p, truth, strict=True)]
    assert found["brier"] == pytest.approx(sum(d @ d for d in apart) / 300)
    error = 0.0
    for i in range(15):
        within = (p.max(1) > i / 15) & (p.max(1) <= (i + 1) / 15)
        if within.any():
            error += within.mean() * abs(p[within].max(1).mean() - (p[within].argmax(1) == truth[within]).mean())
    assert found["ece"] == pytest.approx(error)
    assert sum(b["count"] for b in found["bins"]) == 300


def test_multi_label_measures_are_of_every_yes_or_no() -> None:
    truth, logits = task(2.0, True, 300)
    p = probabilities(logits, True)
    found = calibration(truth, logits)
    assert found["nll"] == pytest.approx(np.mean([log_loss(truth[:, k], p[:, k]) for k in range(4)]))
    assert found["brier"] == pytest.approx(np.mean([brier_score_loss(truth[:, k], p[:, k]) for k in range(4)]))


def test_logits_that_are_all_right_do_no_harm() -> None:
    truth = np.arange(50) % 3
    logits = np.eye(3)[truth] * 500
    assert np.isfinite(fit_temperature(truth, logits))
    assert calibration(truth, logits)["ece"] == pytest.approx(0)
    assert np.isfinite(calibration(truth, -logits)["nll"])
