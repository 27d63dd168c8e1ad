"""Band orders that cannot be right are refused, those that can be are not, on real pixels too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from ingest.building.build import Options, ingest
from ingest.source import Array, Entry, Facts, Listening, Schema
from shards.bands import SENTINEL2
from shards.errors import BandstreamError
from shards.manifest import Reflectance

STORED = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
"""EuroSAT's order: B8A last."""


class Tiles:
    """Tiles of thirteen bands, told to lie in an order."""

    name = "tiles"
    inputs: tuple[Path, ...] = ()

    def __init__(self, tiles: list[np.ndarray], order: tuple[str, ...]) -> None:
        self.tiles, self.order = tiles, order

    def listing(self, listening: Listening) -> Iterator[Entry]:
        return (Entry(f"t{number}", f"t{number}", "train") for number in range(len(self.tiles)))

    @property
    def schema(self) -> Schema:
        arrays = {"10m.npy": Array(tuple(SENTINEL2), self.tiles[0].shape[1:])}  # type: ignore[arg-type]
        return Schema(
            tuple(SENTINEL2.values()), arrays, Reflectance(scale=1e-4, offset=0, level="L1C"), {}, {}, 64, {}, 0
        )

    def describe(self) -> dict[str, Any]:
        return {"kind": "tiles"}

    def read(self, entry: Entry, views: Any) -> Facts:
        planes = dict(zip(self.order, self.tiles[int(entry.key[1:])], strict=True))
        views["10m.npy"][...] = np.stack([planes[band] for band in SENTINEL2])
        return Facts({}, {"id": entry.key}, None, "", {})


@pytest.fixture(scope="module")
def tiles(real_data: Path) -> list[np.ndarray]:
    found = []
    for path in sorted((real_data / "eurosat_ms").rglob("*.tif")):
        with rasterio.open(path) as source:
            found.append(source.read())
    return found


def test_the_right_order_is_taken(tiles: list[np.ndarray], tmp_path: Path) -> None:
    ingest(Tiles(tiles, STORED), tmp_path / "set", Options())


def test_esa_order_is_not_eurosats(tiles: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(BandstreamError, match="band order cannot be right"):
        ingest(Tiles(tiles, tuple(SENTINEL2)), tmp_path / "set", Options())
    assert not (tmp_path / "set" / "dataset.json").exists()


def test_any_other_band_in_place_of_cirrus_is_refused(tiles: list[np.ndarray], tmp_path: Path) -> None:
    """Of the orders that exchange B10 with a land band, not one goes through."""
    for number, band in enumerate(band for band in STORED if band not in ("B10", "B09")):
        order = tuple({"B10": band, band: "B10"}.get(name, name) for name in STORED)
        with pytest.raises(BandstreamError, match="cannot be right"):
            ingest(Tiles(tiles, order), tmp_path / str(number), Options())
