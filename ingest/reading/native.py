"""Sentinel-2 at native resolution: the bands of a level, and the arrays that hold them, one a pixel size."""

from collections.abc import Iterable

from ingest.source import Array
from shards.bands import SENTINEL2

LEVELS = {"L1C": tuple(SENTINEL2), "L2A": tuple(band for band in SENTINEL2 if band != "B10")}
"""The bands of each product level, in ESA's order."""


def native_arrays(bands: Iterable[str], side: int) -> dict[str, Array]:
    """`10m.npy`, `20m.npy` and `60m.npy` of these bands, those there are, `side` pixels of 10 m along an edge."""
    named, arrays = tuple(bands), {}
    for gsd in (10, 20, 60):
        if own := tuple(band for band in named if SENTINEL2[band].gsd_m == gsd):
            arrays[f"{gsd}m.npy"] = Array(own, (side * 10 // gsd,) * 2)
    return arrays
