"""Optimisers, with weight decay kept off norms, biases and the tokens of transformers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

TOKENS = ("pos_embed", "position_bias", "position_embedding", "_token")


def build_optimiser(
    modules: dict[nn.Module, float], name: str, weight_decay: float, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """`adamw` (Loshchilov and Hutter 2019), `adam` (Kingma and Ba 2015), `sgd` with plain momentum, as MoCo and SimSiam
    have it, or `lars`.

    `modules` maps each module to the factor on the learning rate that its parameters take; a group's `scale` holds it,
    and `set_learning_rate` applies it. Parameters that `undecayed` names are not decayed, nor adapted by LARS. Adam's
    decay is the L2 term of its gradient, AdamW's is decoupled; `momentum` is their first beta.
    """
    groups: list[dict[str, Any]] = []
    for module, scale in modules.items():
        kept = undecayed(module)
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        for plain in (False, True):
            chosen = [p for name, p in trained if (name in kept) == plain]
            if chosen:
                decay = 0.0 if plain else weight_decay
                groups.append({"params": chosen, "weight_decay": decay, "scale": scale, "adapt": not plain})
    if name == "lars":
        return LARS(groups, momentum)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    kind: type[torch.optim.Adam] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]
    return kind(groups, lr=0.0, betas=(momentum, 0.999), fused=True)


def undecayed(module: nn.Module) -> set[str]:
    """Names of a module's parameters that are no weights of a layer: vectors (norms, biases, scales of layers),
    position and class tokens, and whatever a model of timm's says itself."""
    names = {name for name, p in module.named_parameters() if p.ndim <= 1 or any(token in name for token in TOKENS)}
    for prefix, part in module.named_modules():
        if callable(tell := getattr(part, "no_weight_decay", None)):
            names |= {f"{prefix}.{name}".strip(".") for name in tell()}
    return names


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the coming step."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling: You et al. 2017, "Large batch training of convolutional networks", algorithm 1.

    For a weight w with gradient g, decay b, momentum m and rate r:
    v ← m v + r λ (g + b w),  w ← w - v,  with λ = trust |w| / (|g| + b |w|), or 1 where either norm is 0.
    Groups with `adapt` False are plain SGD with momentum: λ = 1. Nothing here waits for the device.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], momentum: float = 0.9, trust: float = 1e-3, lr: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0, "adapt": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            speeds = []
            for p in weights:
                if "speed" not in self.state[p]:
                    self.state[p]["speed"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                speeds.append(self.state[p]["speed"])
            gradients = [p.grad for p in weights]
            decay, rate = group["weight_decay"], group["lr"]
            updates = torch._foreach_add(gradients, weights, alpha=decay)
            if group["adapt"]:
                of_weights = torch.stack(torch._foreach_norm(weights))
                of_gradients = torch.stack(torch._foreach_norm(gradients))
                ratio = group["trust"] * of_weights / (of_gradients + decay * of_weights)
                ratio = torch.where((of_weights > 0) & (of_gradients > 0), ratio, 1.0)
                torch._foreach_mul_(updates, list(ratio.unbind()))
            torch._foreach_mul_(speeds, group["momentum"])
            torch._foreach_add_(speeds, updates, alpha=rate)
            torch._foreach_sub_(weights, speeds)
