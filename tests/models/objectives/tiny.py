"""A tiny encoder, objectives with tiny heads around it, and losses held against loops in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.objectives import METHODS, Objective, build_objective

Loss = Callable[[list[np.ndarray]], float]


class Tiny(nn.Module):
    """Views (N, 3, H, W) of any size → features (N, 8), like models.encoder.Encoder. `norm`: batch or group."""

    def __init__(self, norm: str = "group") -> None:
        super().__init__()
        self.num_features = 8
        normed = nn.BatchNorm2d(8) if norm == "batch" else nn.GroupNorm(2, 8)
        pooled = [nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8)]
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), normed, *pooled)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.net(x)
        return features


def tiny(name: str, norm: str = "group", seed: int = 0, **knobs: Any) -> Objective:
    """The objective of this name around a `Tiny`, with narrow heads normalised alike, and for MoCo v2 a short queue."""
    torch.manual_seed(seed)
    small = {"projection_hidden": 12, "projection_out": 6, "prediction_hidden": 5, "queue": 32}
    small = {knob: value for knob, value in small.items() if knob in METHODS[name].Knobs.model_fields}
    head_norm = "batch" if norm == "batch" else "layer"
    return build_objective(name, Tiny(norm), {**small, "head_norm": head_norm, **knobs})


def views(n: int, sizes: tuple[int, ...] = (8, 8), seed: int = 1) -> list[torch.Tensor]:
    """Views (n, 3, S, S) of the same n samples, float32."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, 3, 1, 1, generator=generator)
    return [base + torch.randn(n, 3, size, size, generator=generator) for size in sizes]


def randoms(count: int, n: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """`count` embeddings (n, width) that float32 holds exactly, in float64."""
    drawn = np.random.default_rng(seed).standard_normal((count, n, width))
    return list(drawn.astype(np.float32).astype(np.float64))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def compare(objective: Objective, embedded: list[np.ndarray], naive: Loss, trained: int) -> None:
    """Loss of `objective` against `naive`, and gradients of the first `trained` embeddings against central differences
    of it; the others are to have none."""
    tensors = [torch.tensor(each, dtype=torch.float32, requires_grad=True) for each in embedded]
    outcome = objective.loss(tensors)
    assert outcome.loss.dtype == torch.float32 and outcome.loss.shape == ()
    assert outcome.loss.item() == pytest.approx(naive(embedded), rel=1e-5, abs=1e-5)
    assert not outcome.embeddings.requires_grad
    assert not any(value.requires_grad for value in outcome.metrics.values())
    gradients = torch.autograd.grad(outcome.loss, tensors, allow_unused=True)
    for number, (gradient, values) in enumerate(zip(gradients, embedded, strict=True)):
        if number >= trained:
            assert gradient is None
            continue
        slopes = np.empty_like(values)
        for place in np.ndindex(values.shape):
            ends = []
            for change in (-1e-5, 1e-5):
                moved = [each.copy() for each in embedded]
                moved[number][place] += change
                ends.append(naive(moved))
            slopes[place] = (ends[1] - ends[0]) / 2e-5
        assert gradient is not None
        np.testing.assert_allclose(gradient.numpy(), slopes, rtol=1e-4, atol=2e-5)
