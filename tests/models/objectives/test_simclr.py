"""NT-Xent against the paper's own loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from models.encoder import build_encoder
from models.objectives import build_objective
from models.objectives.contrast import nt_xent
from tests.models.objectives.tiny import compare, randoms, tiny


def algorithm_1(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Algorithm 1 of Chen et al. 2020, line by line: z_(2k-1), z_(2k) are the views of sample k."""
    n = len(first)
    z = np.empty((2 * n, first.shape[1]))
    z[0::2], z[1::2] = first, second
    s = np.empty((2 * n, 2 * n))
    for i in range(2 * n):
        for j in range(2 * n):
            s[i, j] = z[i] @ z[j] / (np.linalg.norm(z[i]) * np.linalg.norm(z[j]))

    def loss(i: int, j: int) -> float:
        below = sum(math.exp(s[i, k] / temperature) for k in range(2 * n) if k != i)
        return -math.log(math.exp(s[i, j] / temperature) / below)

    return sum(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(n)) / (2 * n)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_loss_is_the_papers(n, temperature):
    rng = np.random.default_rng(n)
    first, second = rng.standard_normal((2, n, 6))
    found = nt_xent(torch.tensor(first), torch.tensor(second), temperature)
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(algorithm_1(first, second, temperature), rel=1e-5, abs=1e-6)


def test_gradients():
    compare(tiny("simclr", temperature=0.3), randoms(2, 4, 6), lambda e: algorithm_1(e[0], e[1], 0.3), trained=2)


def test_local_views():
    def naive(e: list[np.ndarray]) -> float:
        pairs = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3)]  # each with a global view
        return float(np.mean([algorithm_1(e[one], e[other], 0.1) for one, other in pairs]))

    compare(tiny("simclr"), randoms(4, 3, 6), naive, trained=4)


def test_closed_forms():
    same = torch.ones(8, 4)
    collapsed = nt_xent(same, same, 0.5)
    assert collapsed.loss.item() == pytest.approx(math.log(15), rel=1e-6)
    assert collapsed.top1.item() == collapsed.top5.item() == 0
    apart = torch.eye(8)
    perfect = nt_xent(apart, apart, 0.1)
    assert perfect.loss.item() == pytest.approx(math.log(1 + 14 * math.exp(-10)), abs=1e-6)
    assert perfect.top1.item() == perfect.top5.item() == 1
    opposed = nt_xent(apart, -apart, 0.1)
    assert opposed.top1.item() == opposed.top5.item() == 0


def test_top_k_counts_partners_among_the_nearest():
    rng = np.random.default_rng(0)
    first, second = (torch.tensor(rng.standard_normal((20, 3))) for _ in range(2))
    found = nt_xent(first, second, 0.3)
    z = nn.functional.normalize(torch.cat([first, second]), dim=1)
    ranks = []
    for i in range(40):
        others = [(float(z[i] @ z[k]), k) for k in range(40) if k != i]
        ranks.append([k for _, k in sorted(others, reverse=True)].index((i + 20) % 40))
    assert found.top1.item() == pytest.approx(np.mean([r < 1 for r in ranks]))
    assert found.top5.item() == pytest.approx(np.mean([r < 5 for r in ranks]))


def test_half_precision_embeddings_are_compared_in_float32():
    first, second = torch.randn(2, 16, 8).bfloat16().unbind()
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(first, second, 0.1).loss
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, nt_xent(first.float(), second.float(), 0.1).loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet10t"])
def test_the_loss_at_initialisation_is_near_that_of_chance(encoder):
    torch.manual_seed(0)
    small = {"projection_hidden": 64, "temperature": 0.5}
    objective = build_objective("simclr", build_encoder(encoder, 12), small)
    n = 32
    found = objective.loss(objective([torch.randn(n, 12, 32, 32), torch.randn(n, 12, 32, 32)]))
    assert found.loss.item() == pytest.approx(math.log(2 * n - 1), abs=0.35)
