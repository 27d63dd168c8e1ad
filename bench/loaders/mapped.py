"""What the map-style peers share: samples picked by number, in a DataLoader that shuffles without end."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

Finish = Callable[[list[torch.Tensor]], Any]
EPOCHS = 1_000_000
"""Permutations that follow each other without a break, so that no worker starts anew: a real set's epochs are long."""


def collated(samples: list[list[np.ndarray]]) -> list[torch.Tensor]:
    """N samples of arrays (c, h, w) → a tensor (N, c, h, w) an array."""
    return [torch.from_numpy(np.stack(group)) for group in zip(*samples, strict=True)]


def endless(dataset: Dataset[Any], batch_size: int, workers: int, collate: Callable[[Any], Any]) -> Iterator[Any]:
    """Batches of a map-style dataset, every sample once an epoch, in an order that is new in each."""
    sampler = RandomSampler(dataset, num_samples=EPOCHS * len(dataset))  # type: ignore[arg-type]
    return iter(DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate))
