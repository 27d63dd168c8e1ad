"""Networks that follow others: exponential moving averages of their weights, without gradients."""

import math
from copy import deepcopy

import torch
from torch import nn


def follower(network: nn.Module) -> nn.Module:
    """A copy that takes no gradients."""
    return deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """weights of target ← momentum · weights of target + (1 - momentum) · weights of online.

    Batch statistics are each network's own.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)


def rising(momentum: float, step: int, steps: int) -> float:
    """From `momentum` at the first step along half a cosine to 1: Grill et al. 2020 (BYOL), section 3.2."""
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * min(step / steps, 1))) / 2
