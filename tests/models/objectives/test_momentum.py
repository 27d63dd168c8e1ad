"""Averaged weights against the papers' formulas."""

import math

import pytest
import torch
from torch import nn

from models.objectives.momentum import follow, follower, rising
from tests.models.objectives.tiny import tiny, views


def test_a_follower_is_a_copy_of_its_own_without_gradients():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    copy = follower(network)
    assert all(parameter.requires_grad for parameter in network.parameters())
    for one, other in zip(copy.parameters(), network.parameters(), strict=True):
        assert torch.equal(one, other) and one.data_ptr() != other.data_ptr() and not one.requires_grad


def test_weights_follow_and_batch_statistics_do_not():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    copy = follower(network)
    network(torch.randn(8, 3))
    with torch.no_grad():
        network[0].weight.add_(1)
    before = copy[0].weight.clone()
    follow(copy, network, 0.75)
    torch.testing.assert_close(copy[0].weight, before + 0.25)
    assert torch.equal(copy[1].running_mean, torch.zeros(4)) and copy[1].num_batches_tracked == 0
    follow(copy, network, 0.0)
    assert torch.equal(copy[0].weight, network[0].weight)


def test_momentum_rises_along_half_a_cosine():
    found = [rising(0.99, step, 100) for step in range(101)]
    assert found[0] == pytest.approx(0.99) and found[50] == pytest.approx(0.995) and found[100] == 1
    assert found == sorted(found)
    for step, value in enumerate(found):
        assert value == pytest.approx(1 - (1 - 0.99) * (math.cos(math.pi * step / 100) + 1) / 2)
    assert rising(0.99, 120, 100) == 1


@pytest.mark.parametrize(
    ("name", "target", "target_head"),
    [("byol", "target_encoder", "target_head"), ("moco-v3", "key_encoder", "key_head")],
)
def test_targets_follow_with_rising_momentum_and_take_no_gradient(name, target, target_head):
    objective = tiny(name, momentum=0.9)
    optimiser = torch.optim.SGD([parameter for parameter in objective.parameters() if parameter.requires_grad], 0.5)
    pairs = ((target, "encoder"), (target_head, "head"))
    for step in range(3):
        optimiser.zero_grad()
        objective.loss(objective(views(4, seed=step))).loss.backward()
        optimiser.step()
        momentum = 1 - 0.1 * (math.cos(math.pi * step / 3) + 1) / 2
        wanted = {
            f"{one}.{key}": momentum * value + (1 - momentum) * objective.get_submodule(other).get_parameter(key)
            for one, other in pairs for key, value in objective.get_submodule(one).named_parameters()
        }  # fmt: skip
        objective.after_step(step, 3)
        for key, value in wanted.items():
            found = objective.get_parameter(key)
            assert found.grad is None and not found.requires_grad
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)
    assert all(parameter.grad is not None for parameter in objective.parameters() if parameter.requires_grad)
