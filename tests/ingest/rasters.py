"""GeoTIFFs of several bands, written with rasterio."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

UTM = Affine(10, 0, 500_000, 0, -10, 5_000_000)


def write(path: Path, pixels: np.ndarray, crs: str | None = "EPSG:32633", at: Affine = UTM, **options: Any) -> Path:
    """A GeoTIFF of `pixels`, (C, H, W) or (H, W); `at`: its transform."""
    planes = pixels if pixels.ndim == 3 else pixels[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": len(planes), "height": planes.shape[1], "width": planes.shape[2]}
    place = {"crs": crs, "transform": at} if crs else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile, dtype=planes.dtype.name, **place, **options) as file:
            file.write(planes)
    return path


def scene(number: int, bands: int = 3, size: int = 32, dtype: str = "uint16") -> np.ndarray:
    """Numbers that differ in every band and pixel, (bands, size, size)."""
    rng = np.random.default_rng(number)
    return rng.integers(1, 200, (bands, size, size)).astype(dtype)


def shifted(number: int) -> Affine:
    """The place of the raster of a number: beside each other, 10 km apart."""
    return Affine(10, 0, 500_000 + 10_000 * number, 0, -10, 5_000_000)
