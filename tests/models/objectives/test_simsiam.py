"""SimSiam against equations 1 and 4 of its paper."""

import numpy as np
import pytest
import torch

from tests.models.objectives.tiny import compare, cosine, randoms, tiny, views


def negative_cosine(predictions: np.ndarray, projections: np.ndarray) -> float:
    """Equation 1 of Chen and He 2021, a sample at a time."""
    return -sum(cosine(p, z) for p, z in zip(predictions, projections, strict=True)) / len(predictions)


def test_the_loss_is_the_papers():
    def naive(e: list[np.ndarray]) -> float:
        return negative_cosine(e[0], e[3]) / 2 + negative_cosine(e[1], e[2]) / 2

    compare(tiny("simsiam"), randoms(4, 5, 6), naive, trained=2)


def test_local_views():
    def naive(e: list[np.ndarray]) -> float:
        pairs = [(0, 5), (1, 4), (2, 4), (2, 5), (3, 4), (3, 5)]
        return float(np.mean([negative_cosine(e[p], e[z]) for p, z in pairs]))

    compare(tiny("simsiam"), randoms(6, 4, 6), naive, trained=4)


def test_closed_forms():
    objective, same = tiny("simsiam"), torch.ones(4, 6)
    assert objective.loss([same] * 4).loss.item() == pytest.approx(-1)
    assert objective.loss([same, same, -same, -same]).loss.item() == pytest.approx(1)


def test_no_gradient_flows_through_projections():
    objective = tiny("simsiam")
    *predictions, one, other = objective(views(4))
    assert all(prediction.requires_grad for prediction in predictions)
    assert not one.requires_grad and not other.requires_grad
    objective.loss([*predictions, one, other]).loss.backward()
    found = [parameter.grad.clone() for parameter in objective.parameters()]
    # with projections that are constants from elsewhere, the gradients are the same
    objective.zero_grad()
    with torch.no_grad():
        projections = [objective.head(objective.encoder(view)) for view in views(4)]
    first, second = (objective.predictor(objective.head(objective.encoder(view))) for view in views(4))
    similar = torch.nn.functional.cosine_similarity
    (-(similar(first, projections[1]).mean() + similar(second, projections[0]).mean()) / 2).backward()
    for one, parameter in zip(found, objective.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-6)
