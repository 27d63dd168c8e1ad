"""SSL4EO-S12 1.0, made up, in its layout."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine

S2C = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12"]
SIDES = {"B1": 44, "B9": 44, "B10": 44, "B2": 264, "B3": 264, "B4": 264, "B8": 264}
SEASONS = ["20200323T162931", "20200621T162901", "20200924T162929", "20201228T163711"]
WIDTH, HEIGHT = 0.0243449635, 0.0232246086  # degrees of 2,640 m


def date_name(time: str, tile: str = "T15QXA") -> str:
    return f"{time}_{time[:9]}163750_{tile}"


def write_band(path: Path, side: int, number: int, origin: tuple[float, float], **changes: Any) -> None:
    """A band as the authors' downloader writes it: EPSG:4326, the corner half a pixel of its own too far out."""
    rng = np.random.default_rng(number)
    scene = rng.integers(300, 4000, (4, 4)).repeat(66, 0).repeat(66, 1)
    rows = np.arange(side) * 264 // side
    own = np.random.default_rng([number, side, *path.stem.encode()])
    gain = {"B8": 1.0, "B8A": 1.0, "B10": 0.01}.get(path.stem, own.uniform(0.2, 0.8))
    pixels = (scene[rows[:, None], rows] * gain + own.integers(0, 60, (side, side))).astype(np.uint16)
    x, y = WIDTH / 264 * (264 / min(side, 264)), HEIGHT / 264 * (264 / min(side, 264))
    profile = {
        "driver": "GTiff", "dtype": "uint16", "count": 1, "width": side, "height": side, "crs": "EPSG:4326",
        "transform": Affine(x, 0, origin[0] - x / 2, 0, -y, origin[1] + y / 2),
    } | changes  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels.astype(profile["dtype"]), 1)


def write_place(root: Path, number: int, times: list[str] = SEASONS, bands: list[str] = S2C) -> Path:
    place = root / f"{number:07d}"
    for index, time in enumerate(times):
        folder = place / date_name(time)
        folder.mkdir(parents=True)
        for band in bands:
            write_band(folder / f"{band}.tif", SIDES.get(band, 132), 100 * number + index, (10 + number, 45.5))
    return place
