"""Multi-band rasters through rasterio: what one is, its bands or a window of them, and where it lies.

`ingest.reading.geotiff` reads single bands in bulk; here a file holds all bands of a place, whatever a GeoTIFF can be:
strips or tiles, interleaved or not, compressed or not. What GDAL raises on damaged bytes comes out as RasterError, and
no block is read that takes more memory than MAX_BLOCK because its header says so.
"""

import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ingest.reading.deflate import check_raster
from ingest.reading.geotiff import RasterError
from ingest.reading.utm import LIMIT, lon_lat

MAX_BLOCK = 1 << 28
"""Bytes of the largest block (of all bands, where they are interleaved by pixel) that GDAL is let to allocate."""
SQUARE = 0.01
"""Share by which the sides of a pixel may differ that counts as square, and a GSD be off a whole number of metres."""
CODE = re.compile(r"[A-Za-z0-9_]{1,20}:[A-Za-z0-9_.]{1,20}")
"""An authority's code of a coordinate system."""
OPTIONS = {
    # files beside a raster do not bear on it: a folder and a tar of it give the same
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Raster:
    """What a raster is. `size`: (height, width); `dtype`: NumPy's name; `crs`: `EPSG:32635` or another authority's
    code, "" where it names none; `transform`: (a, b, c, d, e, f) of x = a·column + b·row + c, y = d·column + e·row + f,
    pixel corners, None where it has none; `gsd_m`: side of its pixels in metres, 0 where unknown or not square;
    `nodata`: as declared, None where it is not."""

    count: int
    size: tuple[int, int]
    dtype: str
    crs: str
    transform: tuple[float, float, float, float, float, float] | None
    gsd_m: float
    nodata: float | None

    def window(self, row: int, column: int, size: tuple[int, int]) -> "Raster":
        """What the part of it is whose upper left pixel is (row, column)."""
        if self.transform is None:
            return replace(self, size=size)
        a, b, c, d, e, f = self.transform
        return replace(self, size=size, transform=(a, b, c + a * column + b * row, d, e, f + d * column + e * row))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of a raster whose rows run north to south; zeros where it has no place."""
        if self.transform is None:
            return 0.0, 0.0, 0.0, 0.0
        a, _, c, _, e, f = self.transform
        return c, f + e * self.size[0], c + a * self.size[1], f

    @property
    def north_up(self) -> bool:
        """Whether rows run from north to south and columns from west to east; true of one that has no place."""
        if self.transform is None:
            return True
        a, b, _, d, e, _ = self.transform
        return b == d == 0 and a > 0 > e

    def centre(self) -> tuple[float, float] | None:
        """Longitude and latitude (WGS 84) of its centre; None where unknown. Raises RasterError `misplaced`."""
        if self.transform is None or not self.crs:
            return None
        left, bottom, right, top = self.bounds
        x, y = (left + right) / 2, (bottom + top) / 2
        try:
            authority, _, code = self.crs.partition(":")
            return lon_lat(int(code), x, y) if authority == "EPSG" else _projected(self.crs, x, y)
        except (ValueError, OverflowError) as error:
            raise RasterError("misplaced", str(error)) from None

    def place(self, lon: float, lat: float) -> dict[str, Any]:
        """What a sample's json says of where it lies."""
        return {
            "crs": self.crs if self.transform else "",
            "transform": list(self.transform or (0.0,) * 6),
            "bounds": list(self.bounds),
            "lon": lon,
            "lat": lat,
        }

    def covers(self, other: "Raster") -> bool:
        """Whether two rasters of one size lie in one place, to a hundredth of a pixel; true where one has no place."""
        if self.transform is None or other.transform is None:
            return True
        pixel = max(abs(self.transform[0]), abs(self.transform[4]))
        near = all(abs(a - b) <= 0.01 * pixel for a, b in zip(self.bounds, other.bounds, strict=True))
        return near and (self.crs == other.crs or not self.crs or not other.crs)


def inspect(path: str) -> Raster:
    """What the raster is that GDAL calls `path`. Raises RasterError `unreadable` (also where there is none)."""
    with _opened(path) as source:
        return _described(source)


def read_bands(
    path: str, out: np.ndarray, order: Sequence[int] = (), window: tuple[int, int] | None = None
) -> tuple[Raster, Raster]:
    """Read bands of a file into `out`, (bands, H, W): all that it must have, in its order or the given one.

    `order`: for each plane of `out` the number of its band in the file, from 1; `window`: row and column of the upper
    left pixel, None where `out` is to hold the whole raster. Returns what the file is, and what was read of it. Raises
    RasterError: `wrong-bands`, `wrong-size`, `wrong-type` or `unreadable`.
    """
    with _opened(path) as source:
        raster = _described(source)
        if raster.count != len(out):
            raise RasterError("wrong-bands", f"{raster.count} bands, not {len(out)}")
        if raster.dtype != out.dtype.name:
            raise RasterError("wrong-type", f"{raster.dtype}, not {out.dtype.name}")
        return raster, _read(path, source, raster, out, order or range(1, len(out) + 1), window)


def read_single(path: str, size: tuple[int, int], window: tuple[int, int] | None = None) -> tuple[Raster, np.ndarray]:
    """The same of a file with one band, of whatever type it has: what the file is, and (H, W) of its dtype."""
    with _opened(path) as source:
        raster = _described(source)
        if raster.count != 1:
            raise RasterError("wrong-bands", f"{raster.count} bands, not 1")
        if raster.dtype.startswith("complex"):
            raise RasterError("wrong-type", f"{raster.dtype}, not whole numbers")
        out = np.empty((1, *size), raster.dtype)
        _read(path, source, raster, out, (1,), window)
        return raster, out[0]


def _read(
    path: str, source: Any, raster: Raster, out: np.ndarray, order: Sequence[int], window: tuple[int, int] | None
) -> Raster:
    from rasterio.windows import Window

    height, width = out.shape[1:]
    row, column = window or (0, 0)
    outside = row + height > raster.size[0] or column + width > raster.size[1]
    if outside or (window is None and raster.size != (height, width)):
        raise RasterError("wrong-size", f"{raster.size[1]} x {raster.size[0]} pixels, not {width} x {height}")
    _check_blocks(source)
    part = Window(column, row, width, height) if window else None
    source.read(list(order), out=out, window=part)
    check_raster(source, path, part)
    return raster.window(row, column, (height, width))


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    try:
        with warnings.catch_warnings(), rasterio.Env(**OPTIONS):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver="GTiff") as source:
                yield source
    except RasterError:
        raise
    except Exception as error:  # on damaged bytes rasterio raises its own, CPL's, ValueError, UnicodeError, ...
        text = " ".join(str(error.__cause__ or error).split())
        for name in (path, os.path.basename(path)):
            text = text.replace(name, "it")
        raise RasterError("unreadable", text or type(error).__name__) from None


def _check_blocks(source: Any) -> None:
    height, width = source.block_shapes[0]
    together = source.count if source.profile.get("interleave") == "pixel" else 1
    if height * width * together * np.dtype(source.dtypes[0]).itemsize > MAX_BLOCK:
        raise RasterError(
            "unreadable",
            f"blocks of {width} x {height} pixels: write it in smaller ones (gdal_translate -co TILED=YES)",
        )


def _described(source: Any) -> Raster:
    if len(set(source.dtypes)) > 1:
        raise RasterError("wrong-type", f"bands of several types: {', '.join(dict.fromkeys(source.dtypes))}")
    placed = not source.transform.is_identity
    transform = tuple(float(value) for value in source.transform[:6]) if placed else None
    if transform and not all(map(math.isfinite, transform)):
        raise RasterError("misplaced", "its place is no number")
    crs, metre = _named(source.crs.to_wkt()) if source.crs else ("", 0.0)
    size = (int(source.height), int(source.width))
    return Raster(source.count, size, source.dtypes[0], crs, transform, _gsd(transform, metre), source.nodata)  # type: ignore[arg-type]


@lru_cache(256)
def _named(wkt: str) -> tuple[str, float]:
    """A coordinate system's code, "" where no authority has it; metres to its unit, 0 where that is an angle."""
    from rasterio.crs import CRS

    crs = CRS.from_wkt(wkt)
    code = crs.to_epsg()
    authority = ("EPSG", str(code)) if code else crs.to_authority() or ("", "")
    metre = float(crs.linear_units_factor[1]) if crs.is_projected else 0.0
    text = ":".join(authority)
    return text if CODE.fullmatch(text) else "", metre


def _gsd(transform: tuple[float, ...] | None, metre: float) -> float:
    """Side of a pixel in metres: whole ones where it is near one (EuroSAT's tiles have 10.002), else to 1 %."""
    if transform is None or not metre:
        return 0.0
    width, height = (math.hypot(*side) * metre for side in (transform[:4:3], transform[1::3]))
    if not 0 < width < LIMIT or abs(height / width - 1) > SQUARE:
        return 0.0
    side = math.sqrt(width * height)
    return float(round(side)) if abs(side - round(side)) <= SQUARE * side else float(f"{side:.2g}")


def _projected(crs: str, x: float, y: float) -> tuple[float, float]:
    from rasterio.errors import CRSError
    from rasterio.warp import transform

    try:
        lons, lats = transform(crs, "EPSG:4326", [x], [y])
    except CRSError as error:
        raise ValueError(str(error)) from None
    if not (math.isfinite(lons[0]) and math.isfinite(lats[0])):
        raise ValueError(f"({x:g}, {y:g}) lies outside {crs}")
    return round(lons[0], 7), round(lats[0], 7)
