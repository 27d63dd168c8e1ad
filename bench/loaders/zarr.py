"""Zarr v3 arrays (patches, bands, height, width), a chunk a patch, 1,024 patches a shard, uncompressed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch.utils.data import Dataset

from bench.loaders.mapped import Finish, collating, endless
from bench.plain_ingest import GROUPS


class Patches(Dataset[list[np.ndarray]]):
    """Patches by their number; every process opens the arrays for itself, at its first sample."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = zarr.open_array(folder / next(iter(GROUPS)), mode="r").shape[0]
        self.arrays: list[Any] | None = None

    def opened(self) -> list[Any]:
        if self.arrays is None:
            self.arrays = [zarr.open_array(self.folder / name, mode="r") for name in GROUPS]
        return self.arrays

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> list[np.ndarray]:
        return [array[index] for array in self.opened()]


class Batches(Patches):
    """The same, a whole batch at one selection an array, which Zarr reads concurrently."""

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        chosen = np.sort(indices)
        return [torch.from_numpy(array.oindex[chosen]) for array in self.opened()]


def batches(folder: Path, batch_size: int, workers: int, finish: Finish, fetch: str = "sample") -> Iterator[Any]:
    """Endless shuffled batches; `fetch`: by a `sample` or by a `batch`."""
    if fetch == "batch":
        return endless(Batches(folder), batch_size, workers, finish)
    return endless(Patches(folder), batch_size, workers, collating(finish))
