"""MosaicML's MDS shards: StreamingDataset, shuffled, in a DataLoader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import streaming
from torch.utils.data import DataLoader

from bench.loaders.mapped import Finish, by_group, collating

REPEATS = 100
"""An epoch takes every sample so many times, in one order over all of them, so that workers do not start anew every
second: a real set's epochs are long."""


def batches(folder: Path, batch_size: int, workers: int, finish: Finish) -> Iterator[Any]:
    """Endless shuffled batches."""
    streaming.base.util.clean_stale_shared_memory()
    stream = streaming.Stream(local=str(folder), repeat=REPEATS)
    dataset = streaming.StreamingDataset(streams=[stream], shuffle=True, batch_size=batch_size)
    loader = DataLoader(
        dataset, batch_size, num_workers=workers,
        collate_fn=collating(finish, by_group),
    )  # fmt: skip
    while True:
        yield from loader
