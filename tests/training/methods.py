"""Every method on an encoder of a few weights, without batch statistics: what the parts of a step are compared on."""

import torch
from torch import nn

from models.objectives import METHODS, build_objective

NAMES = sorted(METHODS)


class Small(nn.Module):
    """Views (n, 3, S, S) of any size → features (n, 12), with drop-out where it is asked for."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_features = 12
        self.net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.GELU(), nn.Dropout(dropout))
        self.out = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.out(self.net(x).mean((2, 3)))
        return features


def small_objective(method: str, dropout: float = 0.0, batch_norm: bool = False) -> nn.Module:
    """The method on `Small`, seeded; without `batch_norm`, layer normalisation stands in its heads instead."""
    torch.manual_seed(0)
    known = METHODS[method].Knobs.model_fields
    knobs: dict[str, object] = {name: 16 for name in known if name.endswith(("_hidden", "_out"))}
    knobs |= {"queue": 48} if "queue" in known else {}
    knobs |= {"head_norm": "batch" if batch_norm else "layer"}
    return build_objective(method, Small(dropout), knobs).train()


def small_views(samples: int, local: int = 0, seed: int = 1) -> list[torch.Tensor]:
    """Two views (n, 3, 8, 8) of samples, and smaller ones."""
    generator = torch.Generator().manual_seed(seed)
    sides = [8, 8, *[5] * local]
    return [torch.randn(samples, 3, side, side, generator=generator) for side in sides]
