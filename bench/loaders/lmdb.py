"""An LMDB of safetensors, a tensor a band, as rico-hdl lays BigEarthNet out (Clasen et al., arXiv 2407.03653)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from torch.utils.data import Dataset

from bench.loaders.mapped import Finish, collating, endless
from bench.plain_ingest import GROUPS


class Patches(Dataset[list[np.ndarray]]):
    """Values of the database by their number; every process opens it for itself, at its first sample."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.transaction: Any = None
        with lmdb.open(str(folder), readonly=True, lock=False) as database, database.begin() as transaction:
            self.keys = list(transaction.cursor().iternext(values=False))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        from safetensors.numpy import load

        if self.transaction is None:
            self.database = lmdb.open(str(self.folder), readonly=True, lock=False, readahead=False, meminit=False)
            self.transaction = self.database.begin()
        tensors = load(self.transaction.get(self.keys[index]))
        return [np.stack([tensors[band] for band in bands]) for bands in GROUPS.values()]

    def close(self) -> None:
        """Close what this process opened; a database may be open only once in a process."""
        if self.transaction is not None:
            self.transaction.abort()
            self.database.close()
            self.transaction = None


def batches(folder: Path, batch_size: int, workers: int, finish: Finish) -> Iterator[Any]:
    """Endless shuffled batches."""
    patches = Patches(folder)
    try:
        yield from endless(patches, batch_size, workers, collating(finish))
    finally:
        patches.close()
