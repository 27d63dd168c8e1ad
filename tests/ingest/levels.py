"""Rasters of three bands, and two levels of label maps beside them, as CerraData-4MM has them."""

from pathlib import Path
from typing import Any

import numpy as np

from ingest.sources.geotiff import GeoTiff
from tests.ingest.rasters import scene, shifted, write

BANDS = "B08,B04,B8A"
"""In the order in which the made-up files store them; in ESA's it is B04 B08 B8A."""


def make(root: Path, count: int, **options: Any) -> Path:
    """Rasters r0.tif, r1.tif, ... of three bands that follow each other as vegetation's do."""
    for number in range(count):
        write(root / f"r{number}.tif", pixels(number), at=shifted(number), **options)
    return root


def pixels(number: int, size: int = 32) -> np.ndarray:
    """B08, B04, B8A: the last is almost the first."""
    planes = scene(number, 3, size) * 20
    planes[2] = planes[0] + number
    return planes


LEVELS = {"L1": ["Pasture", "Forest", "Water, open"], "L2": [f"class {n}" for n in range(14)]}


def make_levels(root: Path, count: int) -> None:
    """As in CerraData-4MM: images, and two levels of masks called as they are."""
    make(root / "msi", count)
    for number in range(count):
        rng = np.random.default_rng(number)
        for level, names in LEVELS.items():
            mask = rng.integers(0, len(names), (32, 32)).astype(np.uint8)
            mask[:2] = 255
            write(root / level / f"r{number}.tif", mask, at=shifted(number))
    for level, names in LEVELS.items():
        (root / f"{level}.txt").write_text("\n".join(names) + "\n")


def levels(root: Path, **options: Any) -> GeoTiff:
    masks = [(level, root / level) for level in LEVELS]
    classes = [(level, root / f"{level}.txt") for level in LEVELS]
    return GeoTiff(root / "msi", BANDS, masks, classes, **options)
