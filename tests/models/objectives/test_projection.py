"""Projection heads: widths, norms, and what they compute."""

import numpy as np
import pytest
import torch
from torch import nn

from models.objectives.projection import head


def kinds(network: nn.Sequential) -> list[str]:
    return [type(part).__name__ for part in network]


@pytest.mark.parametrize(("norm", "layer"), [("batch", "BatchNorm1d"), ("layer", "LayerNorm")])
def test_layers_in_order(norm, layer):
    assert kinds(head([8, 16, 4], norm)) == ["Linear", layer, "ReLU", "Linear"]
    assert kinds(head([8, 4], norm)) == ["Linear"]
    deep = head([8, 16, 12, 4], norm, last_norm=True)
    assert kinds(deep) == ["Linear", layer, "ReLU", "Linear", layer, "ReLU", "Linear", layer]
    linear = [part for part in deep if isinstance(part, nn.Linear)]
    assert [(part.in_features, part.out_features) for part in linear] == [(8, 16), (16, 12), (12, 4)]
    assert all(part.bias is None for part in linear)  # the norm would take it away again
    assert [part.weight is not None for part in deep if type(part).__name__ == layer] == [True, True, False]


def test_without_norm_all_layers_have_biases():
    plain = head([8, 16, 4], "none", last_norm=True)
    assert kinds(plain) == ["Linear", "ReLU", "Linear"]
    assert all(part.bias is not None for part in plain if isinstance(part, nn.Linear))


def test_against_numpy():
    torch.manual_seed(0)
    network = head([5, 7, 3], "batch", last_norm=True)
    x = np.random.default_rng(0).standard_normal((6, 5))

    def normed(values: np.ndarray) -> np.ndarray:
        return (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)

    hidden = np.maximum(normed(x @ network[0].weight.detach().double().numpy().T), 0)
    wanted = normed(hidden @ network[3].weight.detach().double().numpy().T)
    np.testing.assert_allclose(network(torch.tensor(x).float()).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
