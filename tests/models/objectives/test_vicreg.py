"""VICReg against equations 1 to 6 of its paper, with the factors of the released code."""

import math

import numpy as np
import pytest
import torch

from tests.models.objectives.tiny import compare, randoms, tiny


def variance(z: np.ndarray) -> float:
    """Equations 1 and 2 of Bardes et al. 2022."""
    n, width = z.shape
    total = 0.0
    for j in range(width):
        mean = sum(z[:, j]) / n
        total += max(0.0, 1 - math.sqrt(sum((value - mean) ** 2 for value in z[:, j]) / (n - 1) + 1e-4))
    return total / width


def covariance(z: np.ndarray) -> float:
    """Equations 3 and 4."""
    n, width = z.shape
    matrix = np.zeros((width, width))
    for sample in z:
        off = sample - z.mean(0)
        matrix += np.outer(off, off) / (n - 1)
    return sum(matrix[i, j] ** 2 for i in range(width) for j in range(width) if i != j) / width


def invariance(one: np.ndarray, other: np.ndarray) -> float:
    """Equation 5, over the width too, as `F.mse_loss` of the released code does."""
    return float(sum(sum((a - b) ** 2) for a, b in zip(one, other, strict=True))) / one.size


def released(e: list[np.ndarray], weights: tuple[float, float, float]) -> float:
    """Equation 6 as `VICReg.forward` of main_vicreg.py weighs it."""
    std = variance(e[0]) / 2 + variance(e[1]) / 2
    cov = covariance(e[0]) + covariance(e[1])
    return weights[0] * invariance(e[0], e[1]) + weights[1] * std + weights[2] * cov


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_the_loss_is_the_papers(weights):
    names = ("invariance", "variance", "covariance")
    objective = tiny("vicreg", **dict(zip(names, weights, strict=True)))
    embedded = [0.7 * each for each in randoms(2, 6, 4)]
    embedded = [each.astype(np.float32).astype(np.float64) for each in embedded]
    parts = objective.loss([torch.tensor(each) for each in embedded]).metrics
    assert list(parts) == list(names)
    compare(objective, embedded, lambda e: released(e, weights), trained=2)
    assert parts["invariance"].item() == pytest.approx(invariance(*embedded), rel=1e-5)
    assert parts["variance"].item() == pytest.approx((variance(embedded[0]) + variance(embedded[1])) / 2, rel=1e-5)
    assert parts["covariance"].item() == pytest.approx(covariance(embedded[0]) + covariance(embedded[1]), rel=1e-5)


def test_local_views():
    def naive(e: list[np.ndarray]) -> float:
        pairs = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
        close = float(np.mean([invariance(e[one], e[other]) for one, other in pairs]))
        return (
            25 * close + 25 * float(np.mean([variance(z) for z in e])) + 2 * float(np.mean([covariance(z) for z in e]))
        )

    compare(tiny("vicreg"), randoms(4, 5, 3), naive, trained=4)


def test_closed_forms():
    objective, same = tiny("vicreg"), torch.ones(5, 6)
    assert objective.loss([same, same]).loss.item() == pytest.approx(25 * (1 - 0.01), rel=1e-5)
    assert objective.loss([same, 3 * same]).loss.item() == pytest.approx(25 * 4 + 25 * (1 - 0.01), rel=1e-5)
    wide = torch.tensor([[2.0, 0], [-2, 0], [0, 2], [0, -2]])  # uncorrelated, of a variance above 1
    assert objective.loss([wide, wide]).loss.item() == pytest.approx(0, abs=1e-6)
    together = torch.tensor([[2.0, 2], [-2, -2], [2, 2], [-2, -2]])  # covariance 16/3 in two places, over a width of 2
    assert objective.loss([together, together]).loss.item() == pytest.approx(2 * (16 / 3) ** 2, rel=1e-5)
