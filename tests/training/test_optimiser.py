"""Optimisers: LARS against a loop over numbers, and what is not decayed."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from training.optimiser import LARS, build_optimiser, set_learning_rate, undecayed


def naive_lars(w, grads, rate, decay, momentum, trust, adapt):
    """Algorithm 1 of You et al. 2017, a layer at a time, in float64."""
    w, v = np.array(w, np.float64), np.zeros_like(w, np.float64)
    for g in grads:
        g = g.double().numpy()
        local = 1.0
        norm_w, norm_g = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
        if adapt and norm_w > 0 and norm_g > 0:
            local = trust * norm_w / (norm_g + decay * norm_w)
        v = momentum * v + rate * local * (g + decay * w)
        w = w - v
    return w


def test_lars_is_the_papers():
    torch.manual_seed(0)
    layer, still = nn.Linear(5, 7), nn.Linear(7, 2)
    nn.init.zeros_(still.weight)
    model = nn.Sequential(layer, still)
    optimiser = build_optimiser({model: 1.0}, "lars", 0.1, 0.9)
    assert isinstance(optimiser, LARS)
    set_learning_rate(optimiser, 0.3)
    before = {name: p.detach().clone().numpy() for name, p in model.named_parameters()}
    grads = {name: [torch.randn(p.shape) for _ in range(4)] for name, p in model.named_parameters()}
    for k in range(4):
        for name, p in model.named_parameters():
            p.grad = grads[name][k].clone()
        optimiser.step()
    for name, p in model.named_parameters():
        plain = p.ndim == 1
        expected = naive_lars(before[name], grads[name], 0.3, 0.0 if plain else 0.1, 0.9, 1e-3, not plain)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=2e-6, atol=1e-7)


def test_sgd_is_that_of_the_papers_of_moco_and_simsiam():
    """v ← 0.9 v + (g + decay w), w ← w - rate v: momentum without Nesterov's look ahead."""
    layer = nn.Linear(3, 2, bias=False)
    optimiser = build_optimiser({layer: 1.0}, "sgd", 0.1)
    set_learning_rate(optimiser, 0.5)
    w, v = layer.weight.detach().double().numpy().copy(), np.zeros((2, 3))
    for k in range(3):
        gradient = torch.full((2, 3), k + 1.0)
        layer.weight.grad = gradient.clone()
        optimiser.step()
        v = 0.9 * v + (gradient.numpy() + 0.1 * w)
        w = w - 0.5 * v
    np.testing.assert_allclose(layer.weight.detach().numpy(), w, rtol=1e-5)


def test_lars_goes_on_from_its_state():
    def stepped(optimiser, p, count):
        for _ in range(count):
            p.grad = 2 * p.detach() + 1
            optimiser.step()

    one = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    first = LARS([{"params": [one], "scale": 1.0}], 0.9, lr=0.5)
    stepped(first, one, 5)
    other = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    second = LARS([{"params": [other], "scale": 1.0}], 0.9, lr=0.5)
    stepped(second, other, 2)
    third = LARS([{"params": [other], "scale": 1.0}], 0.9)
    third.load_state_dict(second.state_dict())
    stepped(third, other, 3)
    assert one.equal(other)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lars"])
def test_norms_and_biases_are_not_decayed(name):
    body, head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Linear(4, 2)
    optimiser = build_optimiser({body: 0.1, head: 1.0}, name, 0.3)
    set_learning_rate(optimiser, 2.0)
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0)
            assert group["lr"] == (0.2 if any(parameter is p for p in body.parameters()) else 2.0)
    trained = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert trained == {id(p) for module in (body, head) for p in module.parameters()}
    body.requires_grad_(False)
    frozen = build_optimiser({body: 0.1, head: 1.0}, name, 0.3)
    assert sum(len(group["params"]) for group in frozen.param_groups) == 2


def test_tokens_and_positions_are_not_decayed():
    model = nn.ModuleDict({"net": timm.create_model("test_vit", num_classes=0)})
    kept = undecayed(model)
    assert {"net.cls_token", "net.pos_embed", "net.norm.weight", "net.patch_embed.proj.bias"} <= kept
    assert "net.patch_embed.proj.weight" not in kept and "net.blocks.0.attn.qkv.weight" not in kept
