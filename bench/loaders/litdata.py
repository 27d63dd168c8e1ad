"""litdata's chunks: StreamingDataset, shuffled, in its StreamingDataLoader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litdata

from bench.loaders.mapped import Finish, by_group, collating


def _alone(samples: tuple[Any, ...]) -> Any:
    return samples[0]


def batches(
    folder: Path, batch_size: int, workers: int, finish: Finish, batch_decode: str | int = "auto"
) -> Iterator[Any]:
    """Endless shuffled batches: litdata's own wrapper begins the dataset anew inside the workers.

    `batch_decode`: how many neighbours of a sample are decoded with it, `auto` (litdata's default, which decodes some
    hundred samples of this size and throws most of them away) or 1.
    """
    dataset = litdata.StreamingDataset(str(folder), shuffle=True, batch_decode=batch_decode)
    endless = litdata.ParallelStreamingDataset([dataset], length=float("inf"), transform=_alone)
    loader = litdata.StreamingDataLoader(
        endless, batch_size=batch_size, num_workers=workers,
        collate_fn=collating(finish, by_group),
    )  # fmt: skip
    return iter(loader)
