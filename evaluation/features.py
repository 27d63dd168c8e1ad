"""Features of a split: of an encoder, and of the image statistics that any encoder must beat."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from shards.errors import BandstreamError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PIXELS = 1 << 23
"""Of whose quantiles `torch.quantile` is asked at once: it refuses more than 16 million."""
Features = Callable[[torch.Tensor], torch.Tensor]
"""Standardised views (N, C, H, W) → features (N, D)."""


def image_statistics(views: torch.Tensor) -> torch.Tensor:
    """Per band mean, standard deviation and five quantiles of (N, C, H, W): (N, 7 C). The first floor."""
    pixels = views.float().flatten(2)
    levels = torch.tensor(QUANTILES, device=views.device)
    parts = pixels.split(max(1, PIXELS // pixels[:1].numel()))
    quantiles = torch.cat([torch.quantile(part, levels, dim=2) for part in parts], 1)  # (5, N, C)
    return torch.cat([pixels.mean(2), pixels.std(2), *quantiles], 1)


def frozen(encoder: nn.Module, device: torch.device, stages: bool = False) -> Features:
    """An encoder as a function of views that neither learns nor moves its batch statistics.

    `stages`: the pooled maps of all its stages (`Encoder.stages`), not of the last alone.
    """
    encoder = encoder.to(device).eval()
    pool: Features = encoder.stages if stages else encoder  # type: ignore[assignment]

    def features(views: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return pool(views.to(device))

    return features


def extract(batches: Iterable[Any], features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (n, D) of the first view of every batch, and the labels that came along, (n, K) or (n,)."""
    (found,), labels = extract_all(batches, [features])
    return found, labels


def extract_all(batches: Iterable[Any], functions: Sequence[Features]) -> tuple[list[np.ndarray], np.ndarray]:
    """As `extract`, of several functions over the same views, made once. Labels are (n, 0) where none came.

    Raises BandstreamError where a feature is not a finite number.
    """
    found: list[list[np.ndarray]] = [[] for _ in functions]
    labels = []
    for batch in batches:
        for parts, features in zip(found, functions, strict=True):
            parts.append(features(batch.views[0]).float().numpy(force=True))
        none = np.empty((len(batch.views[0]), 0), np.float32)
        labels.append(none if batch.labels is None else batch.labels.numpy())
    whole = [np.concatenate(parts) for parts in found]
    if not all(np.isfinite(features).all() for features in whole):
        raise BandstreamError(
            "features are not finite numbers: the pictures hold pixels that are none, or the encoder is damaged: "
            "run `bandstream verify`"
        )
    return whole, np.concatenate(labels)
