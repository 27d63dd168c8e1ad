"""BYOL against equation 2 of its paper."""

import numpy as np
import pytest
import torch

from tests.models.objectives.tiny import compare, randoms, tiny


def distance(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Equation 2 of Grill et al. 2020: squared distance of the normalised, a sample at a time."""
    total = 0.0
    for q, z in zip(predictions, targets, strict=True):
        total += float(np.sum((q / np.linalg.norm(q) - z / np.linalg.norm(z)) ** 2))
    return total / len(predictions)


def test_the_loss_is_the_papers():
    # predictions of views 0 and 1, then targets of views 0 and 1: each predicts the other
    compare(tiny("byol"), randoms(4, 5, 6), lambda e: distance(e[0], e[3]) + distance(e[1], e[2]), trained=2)


def test_local_views():
    def naive(e: list[np.ndarray]) -> float:
        pairs = [(0, 5), (1, 4), (2, 4), (2, 5), (3, 4), (3, 5)]
        return 2 * float(np.mean([distance(e[prediction], e[target]) for prediction, target in pairs]))

    compare(tiny("byol"), randoms(6, 4, 6), naive, trained=4)


def test_closed_forms():
    objective, same = tiny("byol"), torch.ones(4, 6)
    assert objective.loss([same] * 4).loss.item() == pytest.approx(0, abs=1e-6)
    assert objective.loss([same, same, -same, -same]).loss.item() == pytest.approx(8)
    across = torch.tensor([[1.0, 0, 0, 0, 0, 0]]), torch.tensor([[0, 3.0, 0, 0, 0, 0]])
    assert objective.loss([across[0], across[0], across[1], across[1]]).loss.item() == pytest.approx(4)
