"""Features of a split: of an encoder, and of the image statistics that any encoder must beat."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def image_statistics(views: torch.Tensor) -> torch.Tensor:
    """Per band mean, standard deviation and five quantiles of (N, C, H, W): (N, 7 C). The first floor."""
    pixels = views.float().flatten(2)
    quantiles = torch.quantile(pixels, torch.tensor(QUANTILES, device=views.device), dim=2)  # (5, N, C)
    return torch.cat([pixels.mean(2), pixels.std(2), *quantiles], 1)


def frozen(encoder: nn.Module, device: torch.device, stages: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """An encoder as a function of views that neither learns nor moves its batch statistics.

    `stages`: the pooled maps of all its stages (`Encoder.stages`), not of the last alone.
    """
    encoder = encoder.to(device).eval()
    pool: Callable[[torch.Tensor], torch.Tensor] = encoder.stages if stages else encoder  # type: ignore[assignment]

    def features(views: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return pool(views.to(device))

    return features


def extract(batches: Iterable[Any], features: Callable[[torch.Tensor], torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n, D) of the first view of every batch, and the labels that came along, (n, K) or (n,)."""
    found, labels = [], []
    for batch in batches:
        found.append(features(batch.views[0]).float().numpy(force=True))
        labels.append(batch.labels.numpy())
    return np.concatenate(found), np.concatenate(labels)
