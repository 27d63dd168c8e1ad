"""What the map-style peers share: samples picked by number, in a DataLoader that shuffles without end."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from bench.plain_ingest import GROUPS

Finish = Callable[[list[torch.Tensor]], Any]
EPOCHS = 1_000_000
"""Permutations that follow each other without a break, so that no worker starts anew: a real set's epochs are long."""


def collated(samples: Sequence[Sequence[np.ndarray]]) -> list[torch.Tensor]:
    """N samples of arrays (c, h, w) → a tensor (N, c, h, w) an array."""
    return [torch.from_numpy(np.stack(group)) for group in zip(*samples, strict=True)]


def collating(finish: Finish, take: Callable[[Any], Sequence[np.ndarray]] | None = None) -> Callable[[Any], Any]:
    """Collate samples, of which `take` takes the arrays, and finish the batch; workers of any start method take it."""
    return partial(_collate_and_finish, finish, take)


def _collate_and_finish(finish: Finish, take: Callable[[Any], Sequence[np.ndarray]] | None, samples: Any) -> Any:
    return finish(collated([take(sample) for sample in samples] if take else samples))


def by_group(sample: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays of a sample that is a dict by GSD, as `bench.plain_ingest` writes it."""
    return [sample[group] for group in GROUPS]


def endless(dataset: Dataset[Any], batch_size: int, workers: int, collate: Callable[[Any], Any]) -> Iterator[Any]:
    """Batches of a map-style dataset, every sample once an epoch, in an order that is new in each."""
    sampler = RandomSampler(dataset, num_samples=EPOCHS * len(dataset))  # type: ignore[arg-type]
    return iter(DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate))
