"""What most rasters of an archive are, by some of them: that is what a set is made of, and others are rejected."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ingest.reading.nodata import representable
from ingest.reading.raster import Raster
from shards.errors import BandstreamError

DTYPES = ("uint8", "uint16", "int16", "float32")
LARGEST = 1 << 25
"""Bytes of the largest sample: workers hold a few dozen of them."""


def usual_of(found: Sequence[tuple[str, Raster]], bands: Sequence[str], patch: int | None) -> tuple[Raster, list[str]]:
    """What most of these (path, raster) are that have all bands, of a tile where they are cut to `patch` pixels; and
    the paths of those that are so. Raises BandstreamError where that can be no set."""
    fitting = [(path, raster) for path, raster in found if raster.count == len(bands)]
    if not fitting:
        path, raster = found[0]
        raise BandstreamError(f"{path} has {raster.count} bands, --bands names {len(bands)} ({' '.join(bands)})")
    kinds = [(raster.dtype, (patch, patch) if patch else raster.size) for _, raster in fitting]
    dtype, size = Counter(kinds).most_common(1)[0][0]
    usual = [each for each, kind in zip(fitting, kinds, strict=True) if kind == (dtype, size)]
    if dtype not in DTYPES:
        raise BandstreamError(
            f"{usual[0][0]} holds {dtype}, a set {', '.join(DTYPES)}: convert the rasters (gdal_translate -ot)"
        )
    sample_bytes = len(bands) * size[0] * size[1] * np.dtype(dtype).itemsize
    if sample_bytes > LARGEST:
        raise BandstreamError(
            f"samples of {size[1]} x {size[0]} pixels would take {sample_bytes / 1e6:,.0f} MB each: "
            "cut them with --patch"
        )
    nodata = Counter(representable(raster.nodata, dtype) for _, raster in usual).most_common(1)[0][0]
    ((gsd, alike),) = Counter(raster.gsd_m for _, raster in usual).most_common(1)
    gsd = gsd if 2 * alike > len(usual) else 0.0  # flights differ in height, and their pixels in size
    return Raster(len(bands), size, dtype, "", None, gsd, nodata), [path for path, _ in usual]
