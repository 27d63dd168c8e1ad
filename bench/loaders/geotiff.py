"""A folder of GeoTIFFs, a file a band, read with rasterio: what torchgeo's datasets do."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset

from bench.loaders.mapped import Finish, collating, endless
from bench.plain_ingest import GROUPS


class Patches(Dataset[list[np.ndarray]]):
    """The patches of a BigEarthNet archive, in version 2's layout."""

    # as torchgeo sets it: GDAL need not list a folder to open a file in it
    GDAL: ClassVar[dict[str, str]] = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}

    def __init__(self, archive: Path) -> None:
        os.environ.update(self.GDAL)
        self.folders = sorted((archive / "BigEarthNet-S2").glob("*/*"))

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        import rasterio

        folder = self.folders[index]
        arrays = []
        for bands in GROUPS.values():
            planes = []
            for band in bands:
                with rasterio.open(folder / f"{folder.name}_{band}.tif") as file:
                    planes.append(file.read(1))
            arrays.append(np.stack(planes))
        return arrays


def batches(folder: Path, batch_size: int, workers: int, finish: Finish) -> Iterator[Any]:
    """Endless shuffled batches."""
    return endless(Patches(folder), batch_size, workers, collating(finish))
