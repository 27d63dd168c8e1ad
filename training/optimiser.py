"""Optimisers, with weight decay kept off norms and biases."""

from typing import Literal

import torch
from torch import nn


def build_optimiser(
    modules: dict[nn.Module, float], name: Literal["adamw", "sgd"], weight_decay: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), or SGD with Nesterov momentum.

    `modules` maps each module to the factor on the learning rate that its parameters take; a group's `scale` holds it,
    and `set_learning_rate` applies it. Vectors (norms, biases) are not decayed.
    """
    groups = []
    for module, scale in modules.items():
        trained = [p for p in module.parameters() if p.requires_grad]
        for decay, chosen in (
            (weight_decay, [p for p in trained if p.ndim > 1]),
            (0.0, [p for p in trained if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "scale": scale})
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0)
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the coming step."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]
