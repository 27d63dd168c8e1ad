"""EuroSAT's multispectral tiles, made up, in its layout."""

from pathlib import Path
from typing import Any

import numpy as np
from rasterio.transform import Affine

from ingest.sources.eurosat import BANDS, CLASSES, STORED
from tests.ingest import rasters

LEVELS = dict(zip(BANDS, (1300, 1100, 1000, 1100, 1300, 1600, 1800, 1800, 2000, 500, 12, 2700, 1900), strict=True))
"""Mean stored numbers of a real tile of AnnualCrop, by band."""


def bands(number: int) -> dict[str, np.ndarray]:
    """Bands of a made-up tile, by name, with means such as a real one's."""
    rng = np.random.default_rng(number)
    ground = rng.uniform(0.5, 1.5, (64, 64))
    return {b: (level * ground + rng.integers(0, 9, (64, 64))).astype(np.uint16) for b, level in LEVELS.items()}


def write(path: Path, number: int, stored: tuple[str, ...] = STORED, **options: Any) -> None:
    at = Affine(10, 0, 300_000 + 640 * (number % 600), 0, -10, 5_300_000 - 640 * (number // 600))
    rasters.write(path, np.stack([bands(number)[band] for band in stored]), "EPSG:32633", at, **options)


def make_ms(root: Path, each: int, step: int = 1) -> Path:
    """An archive with so many tiles a class, `step` x 640 m apart."""
    for index, title in enumerate(CLASSES):
        for number in range(1, each + 1):
            write(root / title / f"{title}_{number}.tif", step * (index * each + number))
    return root
